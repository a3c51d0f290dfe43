"""ViZDoom's engine: a player in a room, what is in sight of it, and which object it has come to."""

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rocket_hf.errors import UserError

from .actions import BUTTONS, buttons
from .maps import Pose, Room, make_room, write_wad

SIZE = (60, 80)  # height, width of pictures; the engine draws twice as finely
TICS = 4  # of a step
FPS = 9  # 35 tics a second, nearly
REACH = 64  # from a player's middle to an object's, in units of the map
MAX_STEPS = 60  # of an episode
AT_REST = 12  # tics after which a player who has just come can turn
SMALLEST = 4  # pixels of an object that is visible

EVENTS = ("none", "target", "wrong")  # which object the player has come to
Event = Literal["none", "target", "wrong"]


@dataclass(frozen=True)
class Sight:
    """A picture, and which objects of the room are where in it."""

    image: np.ndarray  # (height, width, 3) uint8
    objects: np.ndarray  # (height, width) uint8: 0, or 1 + the number of an object

    def mask(self, target: int) -> np.ndarray:
        """(height, width) bool"""
        return self.objects == target + 1

    def sees(self, target: int) -> bool:
        return bool(self.mask(target).any())


class DoomWorld:
    """Some rooms; one at a time is entered, with one of its objects for a target."""

    def __init__(self, rooms: Sequence[Room]):
        self.rooms = {room.seed: room for room in rooms}
        self.room, self.target = rooms[0], 0
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "rooms.wad"
        path.write_bytes(write_wad(rooms))
        self.game = open_game(path, rooms[0].name)

    def enter(self, seed: int, target: int, pose: Pose) -> None:
        self.room, self.target = self.rooms[seed], target
        self.game.set_seed(1 + seed)  # flames begin as they did before
        self.game.set_doom_map(self.room.name)
        self.game.new_episode()
        self.game.make_action([0.0] * len(BUTTONS), AT_REST)
        self.move_to(pose)

    def move_to(self, pose: Pose) -> None:
        """Without a way there: for starts, and for views of a room."""
        self.game.send_game_command(f"warp {pose.place[0]:.0f} {pose.place[1]:.0f}")
        self.game.make_action([*[0.0] * (len(BUTTONS) - 1), self.pose().angle - pose.angle], 1)

    def step(self, choices: Sequence[int]) -> Event:
        self.game.make_action(buttons(choices, TICS), TICS)
        return self.event()

    def event(self) -> Event:
        """Which object the player has come to, the target before others."""
        place = self.pose().place
        near = [number for number, item in enumerate(self.room.objects) if math.dist(place, item.place) <= REACH]
        if self.target in near:
            return "target"
        return "wrong" if near else "none"

    def pose(self) -> Pose:
        x, y, angle = self.game.get_state().game_variables
        return Pose((float(x), float(y)), float(angle))

    def look(self) -> Sight:
        """Objects of fewer pixels than SMALLEST are not in sight."""
        state = self.game.get_state()
        objects = np.zeros(SIZE, dtype=np.uint8)
        for number, item in enumerate(self.room.objects):
            values = [label.value for label in state.labels if at(label, item.place)]
            mask = halved(np.isin(state.labels_buffer, values)) >= 0.5 if values else np.zeros(SIZE, dtype=bool)
            if mask.sum() >= SMALLEST:
                objects[mask & (objects == 0)] = number + 1
        return Sight(halved(state.screen_buffer).round().astype(np.uint8), objects)

    def close(self) -> None:
        self.game.close()
        self.folder.cleanup()


class DoomWorldCache:
    """Keeps the world of the last room asked for, and of its neighbors: starting the engine takes longer than an
    episode."""

    def __init__(self, together: int):
        """`together` rooms are in the file that the engine reads."""
        self.together = together
        self.world: DoomWorld | None = None

    def with_room(self, seed: int) -> DoomWorld:
        if self.world is None or seed not in self.world.rooms:
            self.close()
            first = seed // self.together * self.together
            self.world = DoomWorld([make_room(number) for number in range(first, first + self.together)])
        return self.world

    def close(self) -> None:
        if self.world is not None:
            self.world.close()
        self.world = None


def at(label: Any, place: tuple[float, float]) -> bool:
    return math.dist((label.object_position_x, label.object_position_y), place) < 1


def halved(pixels: np.ndarray) -> np.ndarray:
    """(2 H, 2 W, ...) to (H, W, ...), the mean of each four."""
    fine = pixels.astype(np.float32)
    return (fine[::2, ::2] + fine[::2, 1::2] + fine[1::2, ::2] + fine[1::2, 1::2]) / 4


def require_engine() -> Any:
    try:
        import vizdoom
    except ModuleNotFoundError:
        raise UserError("the world of ViZDoom needs its engine: pip install 'rocket-hf[sim]'") from None
    return vizdoom


def open_game(wad: Path, first_map: str) -> Any:
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
    game.init()
    return game
