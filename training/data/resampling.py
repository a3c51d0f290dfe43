"""Resampling of a dataset's episodes to another control rate.

A resampled frame at time t has image and state of the recorded frame nearest to t (the earlier one of two), so that
both show one moment. Its action depends on what the numbers of an action mean, their kind:

- position: a target, as of most robots that are recorded with a leader arm: interpolated linearly.
- delta: a motion of one step: the motions during the new step are summed. Interpolating them would change how far the
  robot moves.
- velocity: the mean over the new step.
- discrete: a command such as an open or closed gripper: that of the recorded step at t.
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.modeling.strict_config import suggest_name

from .dimensions import VectorDescription

ACTION_KINDS = ("position", "delta", "velocity", "discrete")
RATE_TOLERANCE = 0.01  # relative difference up to which two control rates are the same, such as 29.97 and 30 Hz
TOLERANCE = 1e-6  # frames up to which a time is that of a recorded frame
EPSILON = 1e-8


def frame_times(length: int, step: float) -> np.ndarray:
    """Return the times of an episode's resampled frames, in recorded frames: all multiples of `step` below `length`."""
    times = np.arange(max(1, math.ceil(length / step - TOLERANCE))) * step
    nearest = times.round()
    return np.where(np.abs(times - nearest) < TOLERANCE, nearest, times)


def nearest_frames(times: np.ndarray, length: int) -> np.ndarray:
    """Return the recorded frame nearest to each time, the earlier one of two."""
    return np.ceil(times - 0.5).astype(np.int64).clip(0, length - 1)


def resample_actions(actions: np.ndarray, times: np.ndarray, step: float, kinds: Sequence[str]) -> np.ndarray:
    """Return the actions (frames, A) of one episode at `times`, which are `step` recorded frames apart."""
    columns = [resample_column(actions[:, index], times, step, kind) for index, kind in enumerate(kinds)]
    return np.stack(columns, axis=1).astype(actions.dtype)


def resample_column(values: np.ndarray, times: np.ndarray, step: float, kind: str) -> np.ndarray:
    frames = np.arange(len(values) + 1)
    if kind == "position":
        return np.interp(times, frames[:-1], values)
    if kind == "discrete":
        return values[np.floor(times).astype(np.int64)]
    travelled = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])  # before each recorded frame
    ends = np.minimum(times + step, len(values))
    motion = np.interp(ends, frames, travelled) - np.interp(times, frames, travelled)
    return motion if kind == "delta" else motion / (ends - times)


def action_kinds(
    kinds: Sequence[str] | None, actions: VectorDescription, holds_state: bool, dataset: str, number: int
) -> list[str]:
    """Return the kind of each action dimension: the given ones, or "position" if actions are targets for the state.

    `dataset` and `number` identify the dataset and its entry in the recipe in error messages.
    """
    key, dim = f"data.datasets.{number}.action_kinds", actions.dim
    if kinds is None:
        if holds_state:
            return ["position"] * dim
        listed = f" ({', '.join(actions.names)})" if actions.names else ""
        raise UserError(
            f"the actions of {dataset} are not targets for its state, so resampling needs to know what they are: set "
            f"{key} to one of {', '.join(ACTION_KINDS)} for each of its {dim} dimensions{listed}, or to a list with "
            "one kind for all of them"
        )
    for kind in kinds:
        if kind not in ACTION_KINDS:
            raise UserError(f"{key}: there is no kind {kind!r}: {suggest_name(kind, ACTION_KINDS)}")
    if len(kinds) not in (1, dim):
        raise UserError(f"{key} has {len(kinds)} kinds, but the actions of {dataset} have {dim} dimensions: give one "
                        "kind for each dimension, or one for all of them")  # fmt: skip
    return list(kinds) * (dim if len(kinds) == 1 else 1)


def actions_are_states(
    state_names: Sequence[str] | None, action_names: Sequence[str] | None, states: Tensor, actions: Tensor
) -> bool:
    """Return whether actions are targets for the state, as for most robots that are recorded with a leader arm.

    They are if both have the same length and the same names (as far as they have names) and an action is on average
    nearer to the state of its frame than to the mean action, in units of the standard deviation of each dimension.
    """
    if states.shape[1] != actions.shape[1]:
        return False
    if state_names and action_names and list(state_names) != list(action_names):
        return False
    scale = actions.std(dim=0, correction=0).clamp_min(EPSILON)
    from_state, from_mean = (((actions - other) / scale).abs().mean() for other in (states, actions.mean(dim=0)))
    return bool(from_state < from_mean)


def is_same_rate(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=RATE_TOLERANCE)
