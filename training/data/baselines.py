"""Predictions of a dataset's actions without a policy, whose errors give those of a policy a scale.

- hold still: the robot keeps its current state. Where actions are targets in the space of the state
  (`actions_are_states`), every action of the chunk is the current state; everywhere else it is zero, which is no motion
  for a robot with relative actions.
- mean action: the mean of all actions of the training episodes.
- nearest neighbor: the actions that follow the training frame with the nearest state. Distances are Euclidean, with
  each state dimension divided by its standard deviation; after the end of an episode its last action is repeated.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rocket_hf.errors import UserError

from .lerobot_data import RobotDataset
from .mixture import EvenlySpacedOrder
from .resampling import EPSILON, actions_are_states

HOLD_STILL, MEAN_ACTION, NEAREST_NEIGHBOR = "hold still", "mean action", "nearest neighbor"


class ActionBaselines:
    """Baselines of a dataset, computed from some of its episodes, the training episodes."""

    def __init__(self, data: RobotDataset, training_episodes: Sequence[int]):
        if not training_episodes:
            raise UserError(f"the baselines of {data.id} need at least one other episode: record a second episode")
        self.data = data
        frames = map(data.frame_range, training_episodes)
        self.rows = torch.cat([torch.arange(each.start, each.stop) for each in frames])
        states, actions = data.state[self.rows], data.actions[self.rows]
        self.mean_action = actions.mean(dim=0)
        self.scale = states.std(dim=0, correction=0).clamp_min(EPSILON)
        self.scaled_states = states / self.scale
        self.holds_state = actions_are_states(data.state_names, data.action_names, states, actions)

    @property
    def hold_still_action(self) -> str:
        """Description of the action with which the robot holds still, for reports."""
        return "the current state" if self.holds_state else "the action zero"

    def predict(self, name: str, index: int, steps: int) -> Tensor:
        """Return the predicted actions from frame `index` on, (steps, A)."""
        if name == NEAREST_NEIGHBOR:
            return self.nearest_neighbor(index, steps)
        action = self.mean_action if name == MEAN_ACTION else self.hold_still(index)
        return action.expand(steps, -1)

    def hold_still(self, index: int) -> Tensor:
        return self.data.state[index] if self.holds_state else torch.zeros_like(self.mean_action)

    def nearest_neighbor(self, index: int, steps: int) -> Tensor:
        distances = (self.scaled_states - self.data.state[index] / self.scale).square().sum(dim=1)
        nearest = int(self.rows[distances.argmin()])
        last = self.data.frame_range(self.data.episode_of_frame(nearest)).stop - 1
        return self.data.actions[torch.arange(nearest, nearest + steps).clamp_max(last)]


def validation_baselines(
    datasets: Sequence[RobotDataset], training_episodes: Sequence[Sequence[int]], held_out: EvenlySpacedOrder
) -> dict[str, float]:
    """Return the validation errors of holding still and of the mean action on the frames of a validation.

    Like a policy's validation error, each is the mean over the action dimensions of the mean absolute error, in robot
    units, over all actions of the chunks that lie before the end of their episode.
    """
    baselines = {number: ActionBaselines(datasets[number], training_episodes[number]) for number in
                 {held_out[position][0] for position in range(len(held_out))}}  # fmt: skip
    errors: dict[str, list[Tensor]] = {HOLD_STILL: [], MEAN_ACTION: []}
    exists: list[Tensor] = []
    for number, index in (held_out[position] for position in range(len(held_out))):
        actions = datasets[number].future_actions(index)
        exists.append(datasets[number].action_mask.expand_as(actions))
        for name, parts in errors.items():
            parts.append((baselines[number].predict(name, index, len(actions)) - actions).abs())
    mask = torch.cat(exists)
    return {name: mean_over_dimensions(torch.cat(parts), mask) for name, parts in errors.items()}


def mean_over_dimensions(errors: Tensor, mask: Tensor) -> float:
    """Return the mean over the dimensions of their mean error (actions, A) where the mask is True."""
    if mask.all():
        return float(errors.mean())
    counts = mask.sum(dim=0)
    sums = (errors * mask).sum(dim=0)
    return float((sums / counts)[counts > 0].mean())
