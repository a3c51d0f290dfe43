"""Simulator of ROCKET-2 episodes in ViZDoom: reach the object that is marked in a view from elsewhere in the room.

A whole episode follows from the seed of its room and its target: the start pose, and the goal views that mark the
target. The first goal view is shown at the start, the next ones whenever the goal is refreshed.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from rocket_hf.errors import UserError
from rocket_hf.sims.vizdoom.maps import OBJECTS_PER_ROOM, Point, Pose, Room, make_room
from rocket_hf.sims.vizdoom.world import DoomWorld, DoomWorldCache, Event

MIN_GOAL_DISTANCE = 96  # from a goal view to the straight path to the target, in map units
MIN_GOAL_PIXELS = 12  # of the mask in a goal view
MAX_GOAL_BEARING = 50  # degrees to either side; half the width of an object beyond the edge of the image
ATTEMPTS = 50_000  # poses tried for the goal views of an episode
ROOMS_PER_FILE = 200  # rooms that the engine loads at a time


@dataclass(frozen=True)
class Rocket2Start:
    """Start of an episode: the seed of the room, and the index of the target among its objects."""

    seed: int
    target: int


@dataclass(frozen=True)
class Rocket2StartRequest:
    """Request to start an episode. The goal is shown at the start and again after every `refresh` steps."""

    start: Rocket2Start
    refresh: int
    max_steps: int


@dataclass(frozen=True)
class Rocket2StepRequest:
    """Request to execute one choice for each action factor."""

    choices: tuple[int, ...]


Rocket2Request = Rocket2StartRequest | Rocket2StepRequest


@dataclass(frozen=True)
class GoalView:
    image: np.ndarray  # (H, W, 3) uint8
    mask: np.ndarray  # (H, W) bool, of the target
    pose: Pose


@dataclass(frozen=True)
class Rocket2Reply:
    """State of an episode after a request: the player's observation, and the ground truth for the evaluation."""

    image: np.ndarray  # (H, W, 3) uint8
    goal: GoalView | None  # at steps at which the goal is shown
    steps: int
    event: Event
    max_steps: int
    mask: np.ndarray  # (H, W) bool: the target in `image`; ground truth
    pose: Pose  # ground truth

    @property
    def has_ended(self) -> bool:
        return self.event != "none" or self.steps >= self.max_steps


class Rocket2Simulator:
    """Simulator of one episode at a time."""

    def __init__(self) -> None:
        self.worlds = DoomWorldCache(ROOMS_PER_FILE)
        self.goals: dict[int, GoalView] = {}  # by the step at which they are shown
        self.steps = self.max_steps = 0

    def handle(self, request: Rocket2Request) -> Rocket2Reply:
        return self.start(request) if isinstance(request, Rocket2StartRequest) else self.step(request)

    def start(self, request: Rocket2StartRequest) -> Rocket2Reply:
        start, refresh_steps = request.start, range(0, request.max_steps, request.refresh)
        world, pose = self.worlds.load_room(start.seed), start_pose(start)
        self.goals = dict(zip(refresh_steps, find_goal_views(world, start, pose, len(refresh_steps)), strict=True))
        self.steps, self.max_steps = 0, request.max_steps
        world.start_episode(start.seed, start.target, pose)
        return self.reply(world, "none")

    def step(self, request: Rocket2StepRequest) -> Rocket2Reply:
        world = self.worlds.world
        assert world is not None, "an episode must be started before its first step"
        event = world.step(request.choices)
        self.steps += 1
        return self.reply(world, event)

    def reply(self, world: DoomWorld, event: Event) -> Rocket2Reply:
        view, goal = world.observe(), self.goals.get(self.steps)
        return Rocket2Reply(view.image, goal, self.steps, event, self.max_steps, view.mask(world.target), world.pose())

    def close(self) -> None:
        self.worlds.close()


def episode_starts(episodes: int, first_seed: int) -> list[Rocket2Start]:
    """Return the starts of all episodes: episode k is in room `first_seed` + k and its target is object k modulo 4."""
    return [Rocket2Start(first_seed + number, number % OBJECTS_PER_ROOM) for number in range(episodes)]


def start_pose(start: Rocket2Start) -> Pose:
    return next(make_room(start.seed).poses(random.Random(f"start to {start.target} of {start.seed}")))


def find_goal_views(world: DoomWorld, start: Rocket2Start, begin: Pose, count: int) -> list[GoalView]:
    views = list(islice(goal_views(world, start, begin), count))
    if len(views) < count:
        raise UserError(
            f"in room {start.seed} only {len(views)} of {ATTEMPTS} views show object {start.target} away from the path "
            "to it: leave the room out by another --seed"
        )
    return views


def goal_views(world: DoomWorld, start: Rocket2Start, begin: Pose) -> Iterator[GoalView]:
    """Yield views of the target from poses that the player will hardly pass."""
    room = world.rooms[start.seed]
    world.start_episode(start.seed, start.target, begin)
    for pose in goal_poses(room, start, begin.position):
        world.teleport(pose)
        view = world.observe()
        mask = view.mask(start.target)
        if mask.sum() >= MIN_GOAL_PIXELS:
            yield GoalView(view.image, mask, pose)


def goal_poses(room: Room, start: Rocket2Start, begin: Point) -> Iterator[Pose]:
    """Yield poses that face the target and are not near the straight path to it."""
    target = room.objects[start.target].position
    for pose in islice(room.poses(random.Random(f"goals {start.target} of {room.seed}")), ATTEMPTS):
        is_facing = abs(pose.bearing(target)) < MAX_GOAL_BEARING
        if is_facing and distance_to_path(pose.position, begin, target) >= MIN_GOAL_DISTANCE:
            yield pose


def distance_to_path(point: Point, begin: Point, end: Point) -> float:
    """Return the distance of a point to the straight line segment from `begin` to `end`."""
    path, to = (end[0] - begin[0], end[1] - begin[1]), (point[0] - begin[0], point[1] - begin[1])
    share = (to[0] * path[0] + to[1] * path[1]) / (path[0] ** 2 + path[1] ** 2)
    share = min(1.0, max(0.0, share))
    return math.dist(point, (begin[0] + share * path[0], begin[1] + share * path[1]))
