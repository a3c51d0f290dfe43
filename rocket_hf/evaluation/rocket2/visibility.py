"""How well a policy knows whether and where its goal is in view, against constants that look at nothing.

The constants are the best there are for the same steps: always or never in view; and for the place, the median of
those where it was. Steps of an episode are alike, so intervals (95 %) are of episodes drawn anew, not of steps.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .rollouts import Episode

DRAWS = 2_000
AXES = ("y", "x")


def sight(episodes: Sequence[Episode]) -> dict[str, Any]:
    """By head, what was measured: None for a head that the policy has not kept, nothing of places never in view."""
    glances = [glance for episode in episodes for glance in episode.glances]
    said = glances[0].said
    owners = np.repeat(np.arange(len(episodes)), [len(episode.glances) for episode in episodes])
    visible = np.array([glance.visible for glance in glances])
    return {
        "steps": len(glances),
        "visible_steps": int(visible.sum()),
        "visibility": None if said.visibility is None else visibility(episodes, visible, owners),
        "point": None if said.point is None else points(episodes, visible, owners),
    }


def visibility(episodes: Sequence[Episode], visible: np.ndarray, owners: np.ndarray) -> dict[str, Any]:
    claimed = np.array([glance.said.visibility for episode in episodes for glance in episode.glances]) > 0.5
    right, constant = claimed == visible, visible == (visible.mean() > 0.5)
    return measured("accuracy", right.astype(float), constant.astype(float), owners)


def points(episodes: Sequence[Episode], visible: np.ndarray, owners: np.ndarray) -> dict[str, Any]:
    """Mean distances along each side of the picture, as shares of that side, where the goal is visible."""
    if not visible.any():
        return {}
    glances = [glance for episode in episodes for glance in episode.glances if glance.visible]
    true = np.array([glance.point for glance in glances])
    said = np.array([glance.said.point for glance in glances])
    wrong, constant = np.abs(said - true), np.abs(np.median(true, axis=0) - true)
    return {
        axis: measured("error", wrong[:, number], constant[:, number], owners[visible])
        for number, axis in enumerate(AXES)
    }


def measured(name: str, values: np.ndarray, constant: np.ndarray, owners: np.ndarray) -> dict[str, Any]:
    low, high = interval(values - constant, owners)
    return {
        name: float(values.mean()),
        "constant": float(constant.mean()),
        "difference": float((values - constant).mean()),
        "interval": [low, high],
    }


def interval(values: np.ndarray, owners: np.ndarray) -> tuple[float, float]:
    """Of the mean of values, each of which is of the episode that owns it."""
    owned = [values[owners == owner] for owner in np.unique(owners)]
    sums, counts = np.array([part.sum() for part in owned]), np.array([len(part) for part in owned])
    drawn = np.random.default_rng(0).integers(len(owned), size=(DRAWS, len(owned)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
