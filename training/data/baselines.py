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

HOLD_STILL, MEAN_ACTION, NEAREST_NEIGHBOR = "hold still", "mean action", "nearest neighbor"
EPSILON = 1e-8


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
        self.holds_state = actions_are_states(data, states, actions)

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


def actions_are_states(data: RobotDataset, states: Tensor, actions: Tensor) -> bool:
    """Return whether actions are targets for the state, as for most robots that are recorded with a leader arm.

    They are if both have the same length and the same names (as far as they have names) and an action is on average
    nearer to the state of its frame than to the mean action, in units of the standard deviation of each dimension.
    """
    if states.shape[1] != actions.shape[1]:
        return False
    if data.state_names and data.action_names and data.state_names != data.action_names:
        return False
    scale = actions.std(dim=0, correction=0).clamp_min(EPSILON)
    from_state, from_mean = (((actions - other) / scale).abs().mean() for other in (states, actions.mean(dim=0)))
    return bool(from_state < from_mean)


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
    for number, index in (held_out[position] for position in range(len(held_out))):
        actions = datasets[number].future_actions(index)
        for name, parts in errors.items():
            parts.append((baselines[number].predict(name, index, len(actions)) - actions).abs())
    return {name: float(torch.cat(parts).mean()) for name, parts in errors.items()}
