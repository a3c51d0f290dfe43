"""What is recorded of a room: views from anywhere, and the bot on its way to each object, now and then pushed off it.

The bot's mistakes are not its own: for some steps at a time the player does something else than it says. So there is a
right action for places where only a policy that errs will be.
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
from .actions import FACTORS, REST
from .bot import Bot
from .maps import OBJECTS, make_room
from .world import EVENTS, MAX_STEPS, SIZE, DoomWorld, DoomWorldCache, Sight

PUSHED = 0.08  # how often, per step
LONGEST_PUSH = 4  # steps
ATTEMPTS = 50
ROOMS_OF_A_FILE = 50  # which the engine reads at a time
VIEWS = "look round the room"


@dataclass(frozen=True)
class Job:
    """One episode: of views, or with the object `target`."""

    room: int  # its seed
    target: int | None
    views: int

    @property
    def task(self) -> str:
        return VIEWS if self.target is None else instruction(make_room(self.room).objects[self.target].kind)


def instruction(kind: str) -> str:
    return f"go to the {kind}"


def columns() -> dict[str, Any]:
    """As lerobot describes them. A step's event is what came of its action."""
    picture = {"dtype": "image", "shape": (*SIZE, 3), "names": ["height", "width", "channels"]}
    return {
        "observation.images.view": picture,
        "observation.images.objects": picture,  # 0, or 1 + the number of an object, in all three channels
        "observation.state": numbers("float32", "x", "y", "angle"),
        "action": numbers("int64", *FACTORS),  # what the bot says
        "executed": numbers("int64", *FACTORS),  # what the player did
        "interaction": numbers("int64", "interaction"),
        "room": numbers("int64", "seed"),
        "target": numbers("int64", "number"),  # 1 + that of the object; 0 in views
        "target.visible": numbers("bool", "visible"),
        "target.point": numbers("float32", "y", "x"),
        "target.box": numbers("float32", "x0", "y0", "x1", "y1"),
        "event": numbers("int64", "event"),
    }


def numbers(dtype: str, *names: str) -> dict[str, Any]:
    return {"dtype": dtype, "shape": (len(names),), "names": list(names)}


class DoomWorker:
    def __init__(self) -> None:
        self.worlds = DoomWorldCache(ROOMS_OF_A_FILE)

    def handle(self, job: Job) -> Demonstration:
        world = self.worlds.with_room(job.room)
        if job.target is None:
            return Demonstration(VIEWS, job.room, 0, views(world, job.room, job.views))
        return approach(world, job.room, job.target)

    def close(self) -> None:
        self.worlds.close()


def views(world: DoomWorld, seed: int, count: int) -> list[dict[str, Any]]:
    poses = world.rooms[seed].poses(random.Random(f"views of {seed}"))
    world.enter(seed, 0, next(poses))
    frames = []
    for pose in islice(poses, count):
        world.move_to(pose)
        frames.append(frame(world, None, world.look(), REST, REST))
    return frames


def approach(world: DoomWorld, seed: int, target: int) -> Demonstration:
    for attempt in range(ATTEMPTS):
        frames = walk(world, seed, target, random.Random(f"{attempt} to {target} of {seed}"))
        if frames:
            return Demonstration(instruction(world.room.objects[target].kind), seed, attempt, frames)
    raise UserError(f"the bot failed {ATTEMPTS} times to reach object {target} of room {seed}: leave the room out")


def walk(world: DoomWorld, seed: int, target: int, draw: random.Random) -> list[dict[str, Any]]:
    """The frames of an episode that ends at the target; none of others."""
    room = world.rooms[seed]
    world.enter(seed, target, next(room.poses(draw)))
    bot, frames, pushed, push = Bot(room, target), [], 0, REST
    for _ in range(MAX_STEPS):
        sight = world.look()
        says = bot.act(world.pose(), sight.sees(target))
        if not pushed and draw.random() < PUSHED:
            pushed, push = draw.randint(1, LONGEST_PUSH), any_action(draw)
        does, pushed = (push, pushed - 1) if pushed else (says, 0)
        frames.append(frame(world, target, sight, says, does))
        event = world.step(does)
        if event != "none":
            frames[-1]["event"] = np.array([EVENTS.index(event)])
            return frames if event == "target" else []
    return []


def any_action(draw: random.Random) -> tuple[int, ...]:
    return tuple(draw.randrange(choices) for choices in FACTORS.values())


def frame(
    world: DoomWorld, target: int | None, sight: Sight, says: tuple[int, ...], does: tuple[int, ...]
) -> dict[str, Any]:
    """Before its action is done, so without an event."""
    pose = world.pose()
    mask = sight.mask(target) if target is not None else np.zeros(SIZE, dtype=bool)
    told = auxiliary_targets(torch.from_numpy(mask))
    return {
        "observation.images.view": sight.image,
        "observation.images.objects": np.repeat(sight.objects[..., None], 3, axis=2),
        "observation.state": np.array([*pose.place, pose.angle], dtype=np.float32),
        "action": np.array(says),
        "executed": np.array(does),
        "interaction": np.array([INTERACTIONS["none" if target is None else "approach"]]),
        "room": np.array([world.room.seed]),
        "target": np.array([0 if target is None else 1 + target]),
        "target.visible": told["visibility"][None].numpy(),
        "target.point": told["point"].float().numpy(),
        "target.box": told["box"].float().numpy(),
        "event": np.array([EVENTS.index("none")]),
    }


def jobs_of(rooms: int, first: int, count: int) -> list[Job]:
    """Of each room its views, then the way to each object."""
    targets: list[int | None] = [None, *range(OBJECTS)]
    return [Job(first + number, target, count) for number in range(rooms) for target in targets]
