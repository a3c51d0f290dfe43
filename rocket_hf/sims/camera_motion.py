"""Motion of the third-person camera: an orbit about a point above the table, per episode or fixed.

The camera keeps its view of that point: turning, raising and approaching it move the camera rigidly about the point, so
that the point stays at its pixel. Only `aim` turns the camera to a point beside it.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

from rocket_hf.errors import UserError

from .setting_values import format_number, parse_number

ORBIT_CENTER = np.array([0.0, 0.7, 0.1])  # world coordinates in meters: the middle of the objects' starts
MAX_AZIMUTH, MAX_ELEVATION, MAX_DISTANCE, MAX_AIM = 180.0, 30.0, 0.5, 0.3
PATTERN = re.compile(r"(random|fixed)\(([^()]*)\)")
UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class CameraMotion:
    """Motion of a camera in one episode, relative to its usual pose."""

    azimuth: float  # degrees about the vertical axis, counterclockwise seen from above
    elevation: float  # degrees upwards
    distance: float  # share by which the distance to the center grows
    aim: tuple[float, float, float] = (0.0, 0.0, 0.0)  # meters from the center to the point that takes its pixel

    def apply(self, position: np.ndarray, rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the moved position (3,) and rotation (3, 3), whose columns are the camera's axes in the world."""
        turn = rotation_about(UP, math.radians(self.azimuth))
        offset = turn @ (position - ORBIT_CENTER)
        raised = rotation_about(np.cross(offset, UP), math.radians(self.elevation))
        offset, rotation = raised @ offset, raised @ turn @ rotation
        offset = (1 + self.distance) * offset
        return ORBIT_CENTER + offset, rotation_between(-offset, np.array(self.aim) - offset) @ rotation


NO_MOTION = CameraMotion(0.0, 0.0, 0.0)


def rotation_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """Return the matrix (3, 3) of the right-handed rotation about an axis, which need not have length one."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def rotation_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the smallest rotation (3, 3) that turns the direction of the first vector to that of the second."""
    axis = np.cross(first, second)
    length = np.linalg.norm(axis)
    return np.eye(3) if length == 0 else rotation_about(axis, math.atan2(float(length), float(first @ second)))


@dataclass(frozen=True)
class CameraSetting:
    """Setting `camera`: the same motion in each episode, or a random one up to these amounts in both directions."""

    azimuth: float = 0.0
    elevation: float = 0.0
    distance: float = 0.0
    aim: float = 0.0
    is_random: bool = False

    @property
    def text(self) -> str:
        """Value of the setting, such as `random(20,10,0.1)`."""
        amounts = [self.azimuth, self.elevation, self.distance, *([self.aim] if self.aim else [])]
        return f"{'random' if self.is_random else 'fixed'}({','.join(map(format_number, amounts))})"

    def draw(self, generator: np.random.Generator) -> CameraMotion:
        """Return the motion of one episode. The number of draws is the same for all settings."""
        shares = generator.uniform(-1, 1, 6).tolist() if self.is_random else [1, 1, 1, 0, 0, 0]
        azimuth, elevation, distance, *aim = shares
        return CameraMotion(
            azimuth * self.azimuth,
            elevation * self.elevation,
            distance * self.distance,
            (aim[0] * self.aim, aim[1] * self.aim, aim[2] * self.aim),
        )


STILL = CameraSetting()


def parse_camera_setting(text: str) -> CameraSetting:
    """Parse `random(AZIMUTH,ELEVATION,DISTANCE[,AIM])` or `fixed(AZIMUTH,ELEVATION,DISTANCE)`."""
    match = PATTERN.fullmatch(text)
    kind, numbers = (match[1], match[2].split(",")) if match else ("", [])
    is_random = kind == "random"
    if len(numbers) not in ((3, 4) if is_random else (3,)):
        raise UserError(
            f"camera takes random(AZIMUTH,ELEVATION,DISTANCE[,AIM]), such as random(20,10,0.1), or "
            f"fixed(AZIMUTH,ELEVATION,DISTANCE), got {text!r}"
        )
    limits = (("azimuth", MAX_AZIMUTH), ("elevation", MAX_ELEVATION), ("distance", MAX_DISTANCE), ("aim", MAX_AIM))
    amounts = {
        name: parse_number(f"{name} of camera", number, 0 if is_random else -limit, limit)
        for (name, limit), number in zip(limits, numbers, strict=False)
    }
    return CameraSetting(**amounts, is_random=is_random) if any(amounts.values()) else STILL
