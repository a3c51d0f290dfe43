"""Recorded episodes of a room: random views, and the bot's path to each object with random perturbations.

For a few steps at a time the player executes a random action instead of the bot's action. The recorded label is the
bot's action, so the dataset contains correct actions also for positions that only an imperfect policy reaches.
"""

import random
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket2 import INTERACTIONS
from rocket_hf.modeling.rocket2_auxiliary import auxiliary_targets

from ..expert import Demonstration
from .actions import FACTORS, IDLE
from .bot import Bot
from .maps import OBJECTS_PER_ROOM, make_room
from .world import EVENTS, IMAGE_SIZE, MAX_STEPS, DoomView, DoomWorld, DoomWorldCache

PERTURBATION_PROBABILITY = 0.08  # per step
MAX_PERTURBATION_STEPS = 4
ATTEMPTS = 50
ROOMS_PER_FILE = 50  # rooms that the engine loads at a time
VIEWS_TASK = "look round the room"  # task of the views in recorded datasets


@dataclass(frozen=True)
class RoomEpisodeRequest:
    """Request to a simulator process for one episode: views of the room, or the path to the object `target`."""

    room: int  # seed of the room
    target: int | None
    views: int  # number of views

    @property
    def task(self) -> str:
        return VIEWS_TASK if self.target is None else instruction(make_room(self.room).objects[self.target].kind)


def instruction(kind: str) -> str:
    return f"go to the {kind}"


def room_features() -> dict[str, Any]:
    """Return the columns of the dataset in lerobot's format. A frame's event is the result of its action."""
    image = {"dtype": "image", "shape": (*IMAGE_SIZE, 3), "names": ["height", "width", "channels"]}
    return {
        "observation.images.view": image,
        "observation.images.objects": image,  # 0, or 1 + the index of an object, in all three channels
        "observation.state": named_feature("float32", "x", "y", "angle"),
        "action": named_feature("int64", *FACTORS),  # the bot's action
        "executed": named_feature("int64", *FACTORS),  # the executed action, which may be a perturbation
        "interaction": named_feature("int64", "interaction"),
        "room": named_feature("int64", "seed"),
        "target": named_feature("int64", "number"),  # 1 + index of the target; 0 in views
        "target.visible": named_feature("bool", "visible"),
        "target.point": named_feature("float32", "y", "x"),
        "target.box": named_feature("float32", "x0", "y0", "x1", "y1"),
        "event": named_feature("int64", "event"),
    }


def named_feature(dtype: str, *names: str) -> dict[str, Any]:
    return {"dtype": dtype, "shape": (len(names),), "names": list(names)}


class DoomSimulator:
    """Simulator that records episodes of rooms."""

    def __init__(self) -> None:
        self.worlds = DoomWorldCache(ROOMS_PER_FILE)

    def handle(self, request: RoomEpisodeRequest) -> Demonstration:
        world = self.worlds.load_room(request.room)
        if request.target is None:
            return Demonstration(VIEWS_TASK, request.room, 0, record_views(world, request.room, request.views))
        return record_path(world, request.room, request.target)

    def close(self) -> None:
        self.worlds.close()


def record_views(world: DoomWorld, seed: int, count: int) -> list[dict[str, Any]]:
    poses = world.rooms[seed].poses(random.Random(f"views of {seed}"))
    world.start_episode(seed, 0, next(poses))
    frames = []
    for pose in islice(poses, count):
        world.teleport(pose)
        frames.append(make_frame(world, None, world.observe(), IDLE, IDLE))
    return frames


def record_path(world: DoomWorld, seed: int, target: int) -> Demonstration:
    for attempt in range(ATTEMPTS):
        frames = walk_to_target(world, seed, target, random.Random(f"{attempt} to {target} of {seed}"))
        if frames:
            return Demonstration(instruction(world.room.objects[target].kind), seed, attempt, frames)
    raise UserError(
        f"the bot failed {ATTEMPTS} times to reach object {target} of the room with seed {seed}: "
        "choose other rooms with --seed"
    )


def walk_to_target(world: DoomWorld, seed: int, target: int, rng: random.Random) -> list[dict[str, Any]]:
    """Return the frames of an episode that ends at the target; an empty list if the bot does not reach it."""
    room = world.rooms[seed]
    world.start_episode(seed, target, next(room.poses(rng)))
    bot, frames, perturbed_steps, perturbation = Bot(room, target), [], 0, IDLE
    for _ in range(MAX_STEPS):
        view = world.observe()
        action = bot.act(world.pose(), view.is_visible(target))
        if not perturbed_steps and rng.random() < PERTURBATION_PROBABILITY:
            perturbed_steps, perturbation = rng.randint(1, MAX_PERTURBATION_STEPS), random_action(rng)
        executed, perturbed_steps = (perturbation, perturbed_steps - 1) if perturbed_steps else (action, 0)
        frames.append(make_frame(world, target, view, action, executed))
        event = world.step(executed)
        if event != "none":
            frames[-1]["event"] = np.array([EVENTS.index(event)])
            return frames if event == "target" else []
    return []


def random_action(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randrange(choices) for choices in FACTORS.values())


def make_frame(
    world: DoomWorld, target: int | None, view: DoomView, action: tuple[int, ...], executed: tuple[int, ...]
) -> dict[str, Any]:
    """Return the frame before its action is executed, so without an event."""
    pose = world.pose()
    mask = view.mask(target) if target is not None else np.zeros(IMAGE_SIZE, dtype=bool)
    mask_targets = auxiliary_targets(torch.from_numpy(mask))
    return {
        "observation.images.view": view.image,
        "observation.images.objects": np.repeat(view.objects[..., None], 3, axis=2),
        "observation.state": np.array([*pose.position, pose.angle], dtype=np.float32),
        "action": np.array(action),
        "executed": np.array(executed),
        "interaction": np.array([INTERACTIONS["none" if target is None else "approach"]]),
        "room": np.array([world.room.seed]),
        "target": np.array([0 if target is None else 1 + target]),
        "target.visible": mask_targets["visibility"][None].numpy(),
        "target.point": mask_targets["point"].float().numpy(),
        "target.box": mask_targets["box"].float().numpy(),
        "event": np.array([EVENTS.index("none")]),
    }


def episode_requests(rooms: int, first_seed: int, views: int) -> list[RoomEpisodeRequest]:
    """Return the episodes of all rooms: for each room its views, then the path to each object."""
    targets: list[int | None] = [None, *range(OBJECTS_PER_ROOM)]
    return [RoomEpisodeRequest(first_seed + number, target, views) for number in range(rooms) for target in targets]
