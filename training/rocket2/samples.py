"""Training samples of ROCKET-2: segments of steps in which every step has a goal in another view.

There are two kinds of samples. A view sample consists of random views of a room, and each step asks for one of several
objects: it trains only the auxiliary heads, because there is no action to imitate. A demonstration sample is a segment
of a recorded episode: it trains the actions and the auxiliary heads.

Everything random about a sample is drawn from a generator seeded by its position in the run, so that neither the number
of ranks nor an interruption changes a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Generator, Tensor

from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.rocket2_auxiliary import auxiliary_targets
from rocket_hf.modeling.rocket2_interface import IGNORE_INDEX

from ..data.batches import sample_generator
from ..data.mixture import FrameRanges, MixtureOrder
from ..recipe import Rocket2Settings
from .dataset import RecordedEpisode, RecordedRooms
from .visibility_index import VisibilityIndex

NO_INTERACTION = -1  # interaction of the goals of view samples
# Share of the steps of view samples that prefer a visible goal object. Without it, two of three goals are not visible.
VISIBLE_GOAL_SHARE = 0.6


class Rocket2Sample(TypedDict):
    """Sample of L steps and G goals: a `Rocket2Batch` without its batch dimension, and the ids of its first frame."""

    images: Tensor  # (L, 3, H, W) uint8
    goal_images: Tensor  # (G, 3, H, W) uint8
    goal_masks: Tensor  # (G, H, W) bool
    goal_interactions: Tensor  # (G,)
    goal_index: Tensor  # (L,)
    previous_actions: Tensor  # (L, F)
    previous_hidden: Tensor  # (L,) bool
    actions: Tensor  # (L, F)
    is_pad: Tensor  # (L,) bool
    visibility: Tensor  # (L,) bool
    point: Tensor  # (L, 2)
    box: Tensor  # (L, 4)
    dataset: Tensor
    episode_index: Tensor
    frame_index: Tensor


@dataclass(frozen=True)
class SamplePlan:
    """Episode and frames of a sample, and the generator for the rest of it.

    `frames` is None for view samples, whose number of steps is not limited by the episode.
    """

    episode: RecordedEpisode
    frames: range | None
    generator: Generator


class Rocket2Samples:
    """Samples from some of the recorded rooms."""

    def __init__(
        self,
        data: RecordedRooms,
        visibility: VisibilityIndex,
        rooms: Sequence[int],
        settings: Rocket2Settings,
        config: Rocket2Config,
        seed: int,
    ):
        self.data, self.visibility, self.settings, self.seed = data, visibility, settings, seed
        self.rest_action = torch.tensor(config.rest_action)
        self.previous_action_dropout = config.previous_action_dropout
        self.length = settings.chunk_steps * settings.chunks
        selected_rooms = set(rooms)
        episodes = [episode for episode in data.episodes if episode.room in selected_rooms]
        self.views = [episode for episode in episodes if visibility.goals_of_views(episode)]
        demonstrations = [episode for episode in episodes if episode.target]
        self.demonstrations = [
            episode for episode in demonstrations if any(len(rows) for rows in self.candidate_goals(episode))
        ]
        self.demonstrations_without_goal = len(demonstrations) - len(self.demonstrations)
        self.segments = [
            (episode, index) for episode in self.demonstrations for index in range(self.count_segments(episode))
        ]
        self.order = MixtureOrder([FrameRanges([range(len(self.segments))])], seed=seed) if self.segments else None

    def count_segments(self, episode: RecordedEpisode) -> int:
        return -(-len(episode.frames) // self.length)

    def plan(self, position: int, is_view: bool) -> SamplePlan:
        """Plan the sample at a position: a view sample if `is_view`, and otherwise of a kind that is drawn."""
        generator = sample_generator(self.seed, position)
        if is_view or torch.rand((), generator=generator) < self.settings.views_share:
            return SamplePlan(self.views[draw_integer(len(self.views), generator)], None, generator)
        assert self.order is not None
        episode, index = self.segments[self.order[position][1]]
        return SamplePlan(episode, self.segment(episode, index, generator), generator)

    def segment(self, episode: RecordedEpisode, index: int, generator: Generator) -> range:
        """Return the frames of a segment.

        The episode is cut at a random frame and then after every `length` steps, so that each of its frames occurs once
        in an epoch of all segments.
        """
        count = len(episode.frames)
        offset = draw_integer(self.count_segments(episode) * self.length - count + 1, generator)
        start = index * self.length - offset
        return episode.frames[max(0, start) : min(count, start + self.length)]

    def sample(self, plan: SamplePlan) -> Rocket2Sample:
        return self.view_sample(plan) if plan.frames is None else self.demonstration_sample(plan, plan.frames)

    def view_sample(self, plan: SamplePlan) -> Rocket2Sample:
        """Return random views of a room. Each step has one of the goals and no action to imitate."""
        generator, steps, count = plan.generator, self.length, self.settings.goals
        rows = draw_rows(torch.arange(plan.episode.frames.start, plan.episode.frames.stop), steps, generator)
        goals = draw_goals(self.visibility.goals_of_views(plan.episode), count, generator)  # (G, 2): object id, row
        visible = (self.data.objects[rows][:, None] == goals[:, 0, None, None]).flatten(2).any(dim=2)  # (L, G)
        goal_index = choose_goal_per_step(visible, generator)
        rest = self.rest_action.expand(steps, -1)
        no_actions, is_pad = torch.full_like(rest, IGNORE_INDEX), torch.zeros(steps, dtype=torch.bool)
        return self.assemble(plan, rows, is_pad, goals, goal_index, rest, no_actions)

    def demonstration_sample(self, plan: SamplePlan, frames: range) -> Rocket2Sample:
        """Return a segment of a demonstration, padded after its last frame."""
        generator, episode, steps = plan.generator, plan.episode, self.length
        rows = torch.arange(frames.start, frames.start + steps)
        is_pad = rows >= frames.stop
        rows = rows.clamp_max(frames.stop - 1)
        executed = self.data.executed[(rows - 1).clamp_min(0)]
        previous = torch.where((rows == episode.frames.start)[:, None], self.rest_action, executed)
        goal_rows = self.draw_demonstration_goals(episode, generator)
        goals = torch.stack([torch.full_like(goal_rows, episode.target), goal_rows], dim=1)
        goal_index = draw_goal_changes(self.settings.goals, steps, generator)
        return self.assemble(plan, rows, is_pad, goals, goal_index, previous, self.data.actions[rows])

    def assemble(
        self,
        plan: SamplePlan,
        rows: Tensor,
        is_pad: Tensor,
        goals: Tensor,
        goal_index: Tensor,
        previous_actions: Tensor,
        actions: Tensor,
    ) -> Rocket2Sample:
        """Assemble a sample. `goals` (G, 2) holds the object id and the row of each goal image."""
        object_ids, goal_rows = goals.unbind(dim=1)
        data, episode = self.data, plan.episode
        auxiliary = auxiliary_targets(data.objects[rows] == object_ids[goal_index][:, None, None])
        hidden = torch.rand(len(rows), generator=plan.generator) < self.previous_action_dropout
        return Rocket2Sample(
            images=data.images[rows],
            goal_images=data.images[goal_rows],
            goal_masks=data.objects[goal_rows] == object_ids[:, None, None],
            goal_interactions=torch.full_like(object_ids, episode.interaction if episode.target else NO_INTERACTION),
            goal_index=goal_index,
            previous_hidden=hidden,
            is_pad=is_pad,
            visibility=auxiliary["visibility"],
            point=auxiliary["point"],
            box=auxiliary["box"],
            dataset=torch.tensor(episode.dataset_index),
            episode_index=torch.tensor(episode.episode_index),
            frame_index=rows[0] - episode.frames.start,
            previous_actions=previous_actions,
            actions=actions,
        )

    def candidate_goals(self, episode: RecordedEpisode) -> tuple[Tensor, Tensor]:
        """Return the rows that show the target of a demonstration: in the episode itself, and elsewhere in the room.

        A part is empty if the recipe does not use such goals.
        """
        rows = self.visibility.rows_showing(episode.room, episode.target)
        in_episode = (rows >= episode.frames.start) & (rows < episode.frames.stop)
        share = self.settings.same_episode_goals
        return rows[in_episode] if share > 0 else rows[:0], rows[~in_episode] if share < 1 else rows[:0]

    def draw_demonstration_goals(self, episode: RecordedEpisode, generator: Generator) -> Tensor:
        """Draw the rows of the goal images, (G,). They are all different if there are enough candidates."""
        same_episode, elsewhere = self.candidate_goals(episode)
        count = self.settings.goals
        share = 0.0 if not len(same_episode) else 1.0 if not len(elsewhere) else self.settings.same_episode_goals
        same_episode_count = int((torch.rand(count, generator=generator) < share).sum())
        rows = torch.cat([
            draw_rows(same_episode, same_episode_count, generator),
            draw_rows(elsewhere, count - same_episode_count, generator),
        ])  # fmt: skip
        return rows[torch.randperm(count, generator=generator)]


def draw_integer(below: int, generator: Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


def draw_rows(rows: Tensor, count: int, generator: Generator) -> Tensor:
    """Draw `count` of the rows, (count, ...). None is drawn twice before all have been drawn."""
    if not count:
        return rows[:0]
    repetitions = -(-count // len(rows))
    return torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(repetitions)])[:count]


def draw_goals(goals_by_object: Sequence[Tensor], count: int, generator: Generator) -> Tensor:
    """Draw goals (count, 2) of object id and row, one object after the other in random order.

    Rarely visible objects are thus drawn as often as others.
    """
    objects = draw_rows(torch.arange(len(goals_by_object)), count, generator).tolist()
    return torch.stack(
        [goals_by_object[index][draw_integer(len(goals_by_object[index]), generator)] for index in objects]
    )


def choose_goal_per_step(visible: Tensor, generator: Generator) -> Tensor:
    """Choose one of the goals for each step, (steps,), given which goal objects are visible, (steps, goals) bool."""
    prefers_visible = torch.rand(len(visible), 1, generator=generator) < VISIBLE_GOAL_SHARE
    return (torch.rand(visible.shape, generator=generator) + (visible & prefers_visible)).argmax(dim=1)


def draw_goal_changes(goals: int, steps: int, generator: Generator) -> Tensor:
    """Return the goal of each step, (steps,): the first one, and the next one after each of some random steps."""
    changes = torch.randint(steps, (draw_integer(goals, generator),), generator=generator)
    return (torch.arange(steps)[:, None] > changes).sum(dim=1)
