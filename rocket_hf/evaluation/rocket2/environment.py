"""Episodes in rooms of ViZDoom after an object that is marked in pictures from elsewhere in the room.

All of an episode follows from its room's seed and its target: the start, and the views that mark the target, of which
the first is shown at the start and the next ones whenever the goal is shown anew.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from rocket_hf.errors import UserError
from rocket_hf.sims.vizdoom.maps import OBJECTS, Point, Pose, Room, make_room
from rocket_hf.sims.vizdoom.world import DoomWorld, DoomWorldCache, Event

AWAY = 96  # of a goal's view from the straight way to the target, in units of the map
SMALLEST_GOAL = 12  # pixels of a mask
SEEN_WITHIN = 50  # degrees to either side, half an object's width beyond the picture's edge
ATTEMPTS = 50_000  # views looked for
ROOMS_OF_A_FILE = 200  # which the engine reads at a time


@dataclass(frozen=True)
class Start:
    seed: int  # of the room
    target: int  # which of its objects


@dataclass(frozen=True)
class Begin:
    """A new episode, whatever went on before; its goal is shown at the start and anew after every `refresh` steps."""

    start: Start
    refresh: int
    max_steps: int


@dataclass(frozen=True)
class Act:
    choices: tuple[int, ...]


Order = Begin | Act


@dataclass(frozen=True)
class GoalView:
    image: np.ndarray  # (H, W, 3) uint8
    mask: np.ndarray  # (H, W) bool, on the target
    pose: Pose


@dataclass(frozen=True)
class Moment:
    """Where an episode is after an order, as its player sees it, and what only a judge may know."""

    image: np.ndarray  # (H, W, 3) uint8
    goal: GoalView | None  # where it is shown anew
    steps: int
    event: Event
    max_steps: int
    mask: np.ndarray  # (H, W) bool: the target in the player's own view
    pose: Pose

    @property
    def ended(self) -> bool:
        return self.event != "none" or self.steps >= self.max_steps


class Rocket2Environment:
    """One episode at a time."""

    def __init__(self) -> None:
        self.worlds = DoomWorldCache(ROOMS_OF_A_FILE)
        self.goals: dict[int, GoalView] = {}  # by the step at which they are shown
        self.steps = self.max_steps = 0

    def follow(self, order: Order) -> Moment:
        return self.begin(order) if isinstance(order, Begin) else self.act(order)

    def begin(self, order: Begin) -> Moment:
        start, shown = order.start, range(0, order.max_steps, order.refresh)
        world, pose = self.worlds.with_room(start.seed), start_pose(start)
        self.goals = dict(zip(shown, first_goals(world, start, pose, len(shown)), strict=True))
        self.steps, self.max_steps = 0, order.max_steps
        world.enter(start.seed, start.target, pose)
        return self.moment(world, "none")

    def act(self, act: Act) -> Moment:
        world = self.worlds.world
        assert world is not None, "an episode is started before it goes on"
        event = world.step(act.choices)
        self.steps += 1
        return self.moment(world, event)

    def moment(self, world: DoomWorld, event: Event) -> Moment:
        sight, goal = world.look(), self.goals.get(self.steps)
        return Moment(sight.image, goal, self.steps, event, self.max_steps, sight.mask(world.target), world.pose())

    def close(self) -> None:
        self.worlds.close()


def starts(episodes: int, first_seed: int) -> list[Start]:
    """Episode k is in the room `first_seed` + k, after its object k modulo four."""
    return [Start(first_seed + number, number % OBJECTS) for number in range(episodes)]


def start_pose(start: Start) -> Pose:
    return next(make_room(start.seed).poses(random.Random(f"start to {start.target} of {start.seed}")))


def first_goals(world: DoomWorld, start: Start, begin: Pose, count: int) -> list[GoalView]:
    goals = list(islice(goal_views(world, start, begin), count))
    if len(goals) < count:
        raise UserError(
            f"in room {start.seed} only {len(goals)} of {ATTEMPTS} views show object {start.target} away from the way "
            "to it: leave the room out by another --seed"
        )
    return goals


def goal_views(world: DoomWorld, start: Start, begin: Pose) -> Iterator[GoalView]:
    """From where the player will hardly come by."""
    room = world.rooms[start.seed]
    world.enter(start.seed, start.target, begin)
    for pose in goal_poses(room, start, begin.place):
        world.move_to(pose)
        sight = world.look()
        mask = sight.mask(start.target)
        if mask.sum() >= SMALLEST_GOAL:
            yield GoalView(sight.image, mask, pose)


def goal_poses(room: Room, start: Start, begin: Point) -> Iterator[Pose]:
    """That look towards the target, away from the straight way to it."""
    place = room.objects[start.target].place
    for pose in islice(room.poses(random.Random(f"goals {start.target} of {room.seed}")), ATTEMPTS):
        if abs(pose.bearing(place)) < SEEN_WITHIN and from_way(pose.place, begin, place) >= AWAY:
            yield pose


def from_way(place: Point, begin: Point, end: Point) -> float:
    """How far a place is from the straight way."""
    way, to = (end[0] - begin[0], end[1] - begin[1]), (place[0] - begin[0], place[1] - begin[1])
    share = (to[0] * way[0] + to[1] * way[1]) / (way[0] ** 2 + way[1] ** 2)
    share = min(1.0, max(0.0, share))
    return math.dist(place, (begin[0] + share * way[0], begin[1] + share * way[1]))
