"""What ROCKET-2 learns from: segments of steps, each step with a goal in another view.

A sample of views shows a room from anywhere, and each step asks after one of several objects: it teaches to see. A
sample of a walk is a segment of an episode: it teaches to act, and to see on the way. All that is random about a sample
is drawn from its position in the run, so that neither the number of ranks nor an interruption changes anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Generator, Tensor

from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.rocket2_auxiliary import describe_masks
from rocket_hf.modeling.rocket2_interface import NOBODY_SAYS

from ..data.batches import sample_generator
from ..data.mixture import Frames, SampleOrder
from ..recipe import GoalRecipe
from .dataset import Episode, RecordedRooms
from .visibility_index import VisibilityIndex

NOTHING_TO_DO = -1  # the interaction of a view
PREFERS_SEEN = 0.6  # of the steps of views: otherwise two of three would ask after something out of sight


class Rocket2Sample(TypedDict):
    """L steps of one segment and G goals: what `Rocket2Batch` has, without the batch, and the name of its first frame."""

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
class Plan:
    """Which frames a sample is of, and what the rest of it is drawn from. Views may be of any number of steps."""

    episode: Episode
    frames: range | None
    draw: Generator


class Rocket2Samples:
    """Those of some rooms."""

    def __init__(
        self,
        data: RecordedRooms,
        sights: VisibilityIndex,
        rooms: Sequence[int],
        goals: GoalRecipe,
        config: Rocket2Config,
        seed: int,
    ):
        self.data, self.sights, self.goals, self.seed = data, sights, goals, seed
        self.rest, self.hidden = torch.tensor(config.rest_action), config.previous_action_dropout
        self.length = goals.chunk_steps * goals.chunks
        chosen = set(rooms)
        self.views = [episode for episode in data.episodes if episode.room in chosen and self.sights.pairs(episode)]
        walks = [episode for episode in data.episodes if episode.room in chosen and episode.target]
        self.walks = [episode for episode in walks if any(len(rows) for rows in self.goal_rows(episode))]
        self.without_goal = len(walks) - len(self.walks)
        self.segments = [(episode, part) for episode in self.walks for part in range(self.parts(episode))]
        self.order = SampleOrder([Frames([range(len(self.segments))])], seed=seed) if self.segments else None

    def parts(self, episode: Episode) -> int:
        return -(-len(episode.frames) // self.length)

    def plan(self, position: int, of_views: bool) -> Plan:
        draw = sample_generator(self.seed, position)
        if of_views or torch.rand((), generator=draw) < self.goals.views_share:
            return Plan(self.views[whole_number(len(self.views), draw)], None, draw)
        assert self.order is not None
        episode, part = self.segments[self.order[position][1]]
        return Plan(episode, self.segment(episode, part, draw), draw)

    def segment(self, episode: Episode, part: int, draw: Generator) -> range:
        """The episode is cut at a random place and then after every `length` steps, so that each of its frames comes
        once in a pass of all parts."""
        count = len(episode.frames)
        start = part * self.length - whole_number(self.parts(episode) * self.length - count + 1, draw)
        return episode.frames[max(0, start) : min(count, start + self.length)]

    def sample(self, plan: Plan) -> Rocket2Sample:
        return self.of_views(plan) if plan.frames is None else self.of_walk(plan, plan.frames)

    def of_views(self, plan: Plan) -> Rocket2Sample:
        """Each step has one of the goals; nobody says what is to be done."""
        draw, steps, count = plan.draw, self.length, self.goals.goals
        rows = pick(torch.arange(plan.episode.frames.start, plan.episode.frames.stop), steps, draw)
        pairs = pick_pairs(self.sights.pairs(plan.episode), count, draw)  # (G, 2): number of the object, row
        seen = (self.data.objects[rows][:, None] == pairs[:, 0, None, None]).flatten(2).any(dim=2)  # (L, G)
        goal_index = asked_after(seen, draw)
        rest = self.rest.expand(steps, -1)
        nobody_says, is_pad = torch.full_like(rest, NOBODY_SAYS), torch.zeros(steps, dtype=torch.bool)
        return self.assemble(plan, rows, is_pad, pairs, goal_index, rest, nobody_says)

    def of_walk(self, plan: Plan, frames: range) -> Rocket2Sample:
        """From the first frame of the segment on; steps after its last one are padding."""
        draw, episode, steps, count = plan.draw, plan.episode, self.length, self.goals.goals
        rows = torch.arange(frames.start, frames.start + steps)
        is_pad = rows >= frames.stop
        rows = rows.clamp_max(frames.stop - 1)
        executed = self.data.executed[(rows - 1).clamp_min(0)]
        previous = torch.where((rows == episode.frames.start)[:, None], self.rest, executed)
        goal_rows = self.goals_of_walk(episode, draw)
        pairs = torch.stack([torch.full_like(goal_rows, episode.target), goal_rows], dim=1)
        goal_index = changing_index(count, steps, draw)
        return self.assemble(plan, rows, is_pad, pairs, goal_index, previous, self.data.actions[rows])

    def assemble(
        self,
        plan: Plan,
        rows: Tensor,
        is_pad: Tensor,
        pairs: Tensor,
        goal_index: Tensor,
        previous: Tensor,
        actions: Tensor,
    ) -> Rocket2Sample:
        """`pairs` (G, 2) say which object is marked in which picture."""
        objects, goal_rows = pairs.unbind(dim=1)
        data, episode = self.data, plan.episode
        told = describe_masks(data.objects[rows] == objects[goal_index][:, None, None])
        return Rocket2Sample(
            images=data.images[rows],
            goal_images=data.images[goal_rows],
            goal_masks=data.objects[goal_rows] == objects[:, None, None],
            goal_interactions=torch.full_like(objects, episode.interaction if episode.target else NOTHING_TO_DO),
            goal_index=goal_index,
            previous_hidden=torch.rand(len(rows), generator=plan.draw) < self.hidden,
            is_pad=is_pad,
            visibility=told["visibility"],
            point=told["point"],
            box=told["box"],
            dataset=torch.tensor(episode.dataset),
            episode_index=torch.tensor(episode.number),
            frame_index=rows[0] - episode.frames.start,
            previous_actions=previous,
            actions=actions,
        )

    def goal_rows(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """Where the target of an episode can be shown: in its own frames, and elsewhere in the room; as far as the
        recipe has such goals."""
        rows = self.sights.seen(episode.room, episode.target)
        own = (rows >= episode.frames.start) & (rows < episode.frames.stop)
        share = self.goals.own_goals
        return rows[own] if share > 0 else rows[:0], rows[~own] if share < 1 else rows[:0]

    def goals_of_walk(self, episode: Episode, draw: Generator) -> Tensor:
        """(G,) rows, different ones as far as there are enough."""
        own, other = self.goal_rows(episode)
        count = self.goals.goals
        share = 0.0 if not len(own) else 1.0 if not len(other) else self.goals.own_goals
        of_own = int((torch.rand(count, generator=draw) < share).sum())
        chosen = torch.cat([pick(own, of_own, draw), pick(other, count - of_own, draw)])
        return chosen[torch.randperm(count, generator=draw)]


def whole_number(below: int, draw: Generator) -> int:
    return int(torch.randint(below, (), generator=draw))


def pick(rows: Tensor, count: int, draw: Generator) -> Tensor:
    """So many of them, (count, ...), none a second time before all have come."""
    if not count:
        return rows[:0]
    rounds = -(-count // len(rows))
    return torch.cat([rows[torch.randperm(len(rows), generator=draw)] for _ in range(rounds)])[:count]


def pick_pairs(by_object: Sequence[Tensor], count: int, draw: Generator) -> Tensor:
    """Of objects in turn, in a random order, so that rare ones come as often as others: (count, 2)."""
    turns = pick(torch.arange(len(by_object)), count, draw).tolist()
    return torch.stack([by_object[turn][whole_number(len(by_object[turn]), draw)] for turn in turns])


def asked_after(seen: Tensor, draw: Generator) -> Tensor:
    """One of the goals for each step (steps,), from which of them are in sight, (steps, goals) bool."""
    prefers = torch.rand(len(seen), 1, generator=draw) < PREFERS_SEEN
    return (torch.rand(seen.shape, generator=draw) + (seen & prefers)).argmax(dim=1)


def changing_index(goals: int, steps: int, draw: Generator) -> Tensor:
    """The first goal, and the next one from each of some random steps on: (steps,)."""
    changes = torch.randint(steps, (whole_number(goals, draw),), generator=draw)
    return (torch.arange(steps)[:, None] > changes).sum(dim=1)
