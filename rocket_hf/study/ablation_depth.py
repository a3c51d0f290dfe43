"""What the depth probe said of the variants, over their seeds, and how far two variants are apart.

Shapes: E episodes that the probe has not seen, L layers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rocket_hf.analysis.depth_report import RUN, UNTRAINED
from rocket_hf.analysis.gradient_report import bootstrapped

from .ablation import Ablation, depth_phase
from .ablation_figures import BASELINES, over_seeds

Depths = dict[str, list["Probed"]]  # of each model, by its name, one for each seed


@dataclass
class Probed:
    name: str
    kind: str
    seed: int
    layers: list[int]
    by_episode: np.ndarray  # (E, L), relative errors
    chosen: int  # the place in `layers` of the one that other episodes speak for

    @property
    def errors(self) -> np.ndarray:
        """(L,)"""
        return self.by_episode.mean(axis=0)

    @property
    def error(self) -> float:
        return float(self.errors[self.chosen])


def read_depths(ablation: Ablation) -> Depths:
    """Of the variants in their order, then of what they are held against."""
    found: Depths = {}
    for seed in ablation.seeds:
        result = ablation.phases.results.get(depth_phase(ablation.recipes, seed))
        for probed in probed_in(result, seed) if result else []:
            found.setdefault(probed.name, []).append(probed)
    return found


def probed_in(result: dict[str, Any], seed: int) -> list[Probed]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in result["layers"]:
        rows.setdefault(row["name"], []).append(row)
    return [
        Probed(
            name.removesuffix(f"-seed-{seed}") if own[0]["kind"] == RUN else name,
            own[0]["kind"],
            seed,
            [row["layer"] for row in own],
            np.array(result["errors_by_episode"][name]),
            [row["chosen"] for row in own].index(True),
        )
        for name, own in rows.items()
    ]


def depth_facts(depths: Depths) -> dict[str, dict[str, Any]]:
    """Of each model, variants and others: its error at the chosen layer, and by layer; and of variants the differences
    to the untrained policy and to the baselines."""
    return {
        name: {
            "kind": models[0].kind,
            "error": over_seeds([model.error for model in models]),
            "chosen_layers": [model.layers[model.chosen] for model in models],
            "by_layer": dict(zip(models[0].layers, mean_errors(models).tolist(), strict=True)),
            "against": differences(depths, name) if models[0].kind == RUN else {},
        }
        for name, models in depths.items()
    }


def mean_errors(models: list[Probed]) -> np.ndarray:
    """(L,), over seeds."""
    return np.mean([model.errors for model in models], axis=0)


def differences(depths: Depths, name: str) -> dict[str, dict[str, float]]:
    others = [*(other for other, models in depths.items() if models[0].kind == UNTRAINED), *BASELINES]
    return {other: difference(depths[name], depths[other]) for other in others if other in depths and other != name}


def difference(first: list[Probed], second: list[Probed]) -> dict[str, float]:
    """Of the errors on the same episodes, the mean over seeds; the interval is a bootstrap's over episodes."""
    by_seed = {model.seed: model for model in second}
    apart = [
        own.by_episode[:, own.chosen] - other.by_episode[:, other.chosen]
        for own in first
        if (other := by_seed.get(own.seed)) is not None
    ]
    mean, low, high = bootstrapped(np.mean(apart, axis=0))
    return {"mean": float(mean), "low": float(low), "high": float(high)}
