"""ViZDoom's engine: a player in a room, its view, and the object that it has reached."""

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rocket_hf.errors import UserError

from .actions import BUTTONS, button_values
from .maps import Pose, Room, make_room, write_wad

IMAGE_SIZE = (60, 80)  # height and width of images; the engine renders at twice this resolution
TICS_PER_STEP = 4
FPS = 9  # approximately: the engine runs 35 tics per second
REACH_DISTANCE = 64  # between the centers of the player and of an object, in map units
MAX_STEPS = 60  # per episode
SETTLING_TICS = 12  # tics after which a new player can turn
MIN_VISIBLE_PIXELS = 4  # objects with fewer pixels count as invisible

EVENTS = ("none", "target", "wrong")  # object that the player has reached
Event = Literal["none", "target", "wrong"]


@dataclass(frozen=True)
class DoomView:
    """The player's image, and the pixels of each visible object."""

    image: np.ndarray  # (height, width, 3) uint8
    objects: np.ndarray  # (height, width) uint8: 0, or 1 + the index of an object

    def mask(self, target: int) -> np.ndarray:
        """Return the mask (height, width) bool of an object."""
        return self.objects == target + 1

    def is_visible(self, target: int) -> bool:
        return bool(self.mask(target).any())


class DoomWorld:
    """ViZDoom's engine with some rooms. An episode takes place in one room, with one of its objects as the target."""

    def __init__(self, rooms: Sequence[Room]):
        self.rooms = {room.seed: room for room in rooms}
        self.room, self.target = rooms[0], 0
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "rooms.wad"
        path.write_bytes(write_wad(rooms))
        self.game = create_game(path, rooms[0].name)

    def start_episode(self, seed: int, target: int, pose: Pose) -> None:
        self.room, self.target = self.rooms[seed], target
        self.game.set_seed(1 + seed)  # makes animations such as flames reproducible
        self.game.set_doom_map(self.room.name)
        self.game.new_episode()
        self.game.make_action([0.0] * len(BUTTONS), SETTLING_TICS)
        self.teleport(pose)

    def teleport(self, pose: Pose) -> None:
        """Place the player at a pose, for the start of an episode and for views of a room."""
        self.game.send_game_command(f"warp {pose.position[0]:.0f} {pose.position[1]:.0f}")
        self.game.make_action([*[0.0] * (len(BUTTONS) - 1), self.pose().angle - pose.angle], 1)

    def step(self, choices: Sequence[int]) -> Event:
        self.game.make_action(button_values(choices, TICS_PER_STEP), TICS_PER_STEP)
        return self.event()

    def event(self) -> Event:
        """Return which object the player has reached; the target has priority."""
        position = self.pose().position
        near = [
            number
            for number, item in enumerate(self.room.objects)
            if math.dist(position, item.position) <= REACH_DISTANCE
        ]
        if self.target in near:
            return "target"
        return "wrong" if near else "none"

    def pose(self) -> Pose:
        x, y, angle = self.game.get_state().game_variables
        return Pose((float(x), float(y)), float(angle))

    def observe(self) -> DoomView:
        """Render the player's view. Objects with fewer than MIN_VISIBLE_PIXELS pixels are not in its masks."""
        state = self.game.get_state()
        objects = np.zeros(IMAGE_SIZE, dtype=np.uint8)
        for number, item in enumerate(self.room.objects):
            values = [label.value for label in state.labels if is_label_at(label, item.position)]
            mask = (
                downsample(np.isin(state.labels_buffer, values)) >= 0.5 if values else np.zeros(IMAGE_SIZE, dtype=bool)
            )
            if mask.sum() >= MIN_VISIBLE_PIXELS:
                objects[mask & (objects == 0)] = number + 1
        return DoomView(downsample(state.screen_buffer).round().astype(np.uint8), objects)

    def close(self) -> None:
        self.game.close()
        self.folder.cleanup()


class DoomWorldCache:
    """Cache of one engine with the last requested room and its neighbors.

    Starting the engine takes longer than an episode.
    """

    def __init__(self, rooms_per_file: int):
        """The engine reads files of `rooms_per_file` rooms with consecutive seeds."""
        self.rooms_per_file = rooms_per_file
        self.world: DoomWorld | None = None

    def load_room(self, seed: int) -> DoomWorld:
        if self.world is None or seed not in self.world.rooms:
            self.close()
            first = seed // self.rooms_per_file * self.rooms_per_file
            self.world = DoomWorld([make_room(number) for number in range(first, first + self.rooms_per_file)])
        return self.world

    def close(self) -> None:
        if self.world is not None:
            self.world.close()
        self.world = None


def is_label_at(label: Any, position: tuple[float, float]) -> bool:
    return math.dist((label.object_position_x, label.object_position_y), position) < 1


def downsample(pixels: np.ndarray) -> np.ndarray:
    """Average blocks of 2 x 2 pixels: (2 H, 2 W, ...) to (H, W, ...)."""
    fine = pixels.astype(np.float32)
    return (fine[::2, ::2] + fine[::2, 1::2] + fine[1::2, ::2] + fine[1::2, 1::2]) / 4


def require_engine() -> Any:
    try:
        import vizdoom
    except ModuleNotFoundError:
        raise UserError("ViZDoom is not installed: run `pip install 'rocket-hf[sim]'`") from None
    except ImportError as error:  # a system library is missing
        raise UserError(f"ViZDoom cannot be imported ({error}): install the missing system library") from None
    return vizdoom


def create_game(wad: Path, first_map: str) -> Any:
    vizdoom = require_engine()
    game = vizdoom.DoomGame()
    game.set_doom_scenario_path(os.fspath(wad))
    game.set_doom_config_path(os.fspath(wad.with_name("engine.ini")))
    game.set_doom_map(first_map)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_labels_buffer_enabled(True)
    for part in ("hud", "weapon", "crosshair", "decals", "particles", "messages"):
        getattr(game, f"set_render_{part}")(False)
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    game.set_available_buttons([getattr(vizdoom.Button, name) for name in BUTTONS])
    variables = vizdoom.GameVariable
    game.set_available_game_variables([variables.POSITION_X, variables.POSITION_Y, variables.ANGLE])
    game.add_game_args("+sv_cheats 1")
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_episode_timeout(0)
    game.set_seed(0)
    try:
        game.init()
    except vizdoom.ViZDoomErrorException as error:
        raise UserError(
            f"ViZDoom's engine cannot start ({error}): run `pip install --force-reinstall vizdoom`"
        ) from error
    return game
