"""Settings of environments: named variants of a suite, such as `metaworld:heights=0..0.12,cameras=corner2`.

An environment name is `SUITE[:SETTING=VALUE,...]`. Only metaworld has settings; without any it is the suite as it is
published. Values that vary are drawn for each episode from its seed, by generators of their own, so that neither the
simulator's draws nor those of another setting change.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rocket_hf.errors import UserError

from .camera_motion import MAX_AZIMUTH, STILL, CameraMotion, CameraSetting, parse_camera_setting
from .geometry_images import IMAGES_BY_INPUT
from .metaworld_tasks import RAISABLE_TASKS
from .names import require_known
from .setting_values import format_number, parse_names, parse_number, parse_range

SUITES = ("metaworld", "libero", "libero-plus")
ROCKET2_SUITE = "vizdoom"
SUITE_WITH_SETTINGS = "metaworld"
MOVING_CAMERA = "corner2"
HAND_CAMERAS = ("gripperPOV", "behindGripper")
CAMERA_NAMES = ("topview", "corner", "corner2", "corner3", *HAND_CAMERAS)
STATES = {"robot": (), "none": (), "object": ("object_x", "object_y", "object_z")}  # dimensions added to the robot's
ROBOT_STATE = ("x", "y", "z", "gripper")
NOT_RAISED = (0.0, 0.0)
MAX_HEIGHT = 0.3  # meters; the hand reaches up to 0.5
PERTURBATIONS = {"camera": "camera azimuth (degrees)", "heights": "height of objects (m)"}
HEIGHT_DRAWS, CAMERA_DRAWS = 1, 2  # parts of the seeds of their generators


@dataclass(frozen=True)
class EnvironmentSettings:
    """A suite and its settings. All fields but the suite are named like the settings."""

    suite: str
    heights: tuple[float, float] = NOT_RAISED  # meters added to the height of a task's objects, lowest and highest
    camera: CameraSetting = STILL  # motion of corner2
    cameras: tuple[str, ...] = ("corner2", "gripperPOV")
    state: str = "robot"  # none: zeros; object: the robot's state and the object's position
    inputs: tuple[str, ...] = ()  # further images of each third-person camera

    def __post_init__(self) -> None:
        if self.camera != STILL and MOVING_CAMERA not in self.cameras:
            raise UserError(f"camera={self.camera.text} moves {MOVING_CAMERA}: add it to cameras")
        if self.inputs and not self.third_person_cameras:
            raise UserError(
                f"inputs={'+'.join(self.inputs)} needs a third-person camera: add {MOVING_CAMERA} to cameras"
            )

    @property
    def name(self) -> str:
        """Environment name, with the settings that differ from their defaults. Equal environments have equal names."""
        low, high = map(format_number, self.heights)
        texts = {
            "heights": low if low == high else f"{low}..{high}",
            "camera": self.camera.text,
            "cameras": "+".join(self.cameras),
            "state": self.state,
            "inputs": "+".join(self.inputs),
        }
        default = EnvironmentSettings(self.suite)
        settings = [f"{kind}={text}" for kind, text in texts.items() if getattr(self, kind) != getattr(default, kind)]
        return f"{self.suite}:{','.join(settings)}" if settings else self.suite

    @property
    def third_person_cameras(self) -> tuple[str, ...]:
        return tuple(camera for camera in self.cameras if camera not in HAND_CAMERAS)

    @property
    def computed_images(self) -> tuple[str, ...]:
        """Names of the further images, such as `corner2_xyz`."""
        return tuple(
            f"{camera}_{image}"
            for camera in self.third_person_cameras
            for kind in self.inputs
            for image in IMAGES_BY_INPUT[kind]
        )

    @property
    def image_names(self) -> tuple[str, ...]:
        return self.cameras + self.computed_images

    @property
    def state_names(self) -> tuple[str, ...]:
        return ROBOT_STATE + STATES[self.state]

    def draw_height(self, task: str, seed: int) -> float:
        """Return the height in meters that is added to the objects of a task's episode with this seed."""
        return float(episode_generator(task, seed, HEIGHT_DRAWS).uniform(*self.heights))

    def draw_camera_motion(self, task: str, seed: int) -> CameraMotion:
        """Return the motion of the camera in a task's episode with this seed."""
        return self.camera.draw(episode_generator(task, seed, CAMERA_DRAWS))

    def require_task(self, task: str) -> None:
        """Raise if the settings do not fit a task: objects that lie loose on the table would fall."""
        if self.heights != NOT_RAISED and task not in RAISABLE_TASKS:
            raise UserError(
                f"heights cannot raise the objects of {task}: choose tasks of {', '.join(sorted(RAISABLE_TASKS))}, or "
                "remove heights"
            )


def episode_generator(task: str, seed: int, purpose: int) -> np.random.Generator:
    """Return a generator for one kind of draws. It differs between tasks, whose episodes often have the same seeds."""
    return np.random.default_rng([seed, purpose, zlib.crc32(task.encode())])


def parse_environment_name(name: str) -> EnvironmentSettings:
    """Parse an environment name, such as `libero` or `metaworld:heights=0..0.12,camera=random(20,10,0.1)`."""
    suite, colon, text = name.partition(":")
    require_known("rocket-hf", "suite", suite, (*SUITES, ROCKET2_SUITE))
    values: dict[str, Any] = {}
    for part in split_settings(text) if colon else ():
        kind, equals, value = part.partition("=")
        if suite != SUITE_WITH_SETTINGS:
            raise UserError(f"{suite} has no setting {kind!r}: only {SUITE_WITH_SETTINGS} has settings, remove it")
        if not equals:
            raise UserError(f"{name!r} has a setting without a value, {part!r}: write it as heights=0..0.12")
        require_known(suite, "setting", kind, PARSERS)
        if kind in values:
            raise UserError(f"{name!r} contains {kind} twice: remove one of them")
        values[kind] = PARSERS[kind](value)
    return EnvironmentSettings(suite, **values)


def split_settings(text: str) -> list[str]:
    """Split at the commas that are not in parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def parse_cameras(text: str) -> tuple[str, ...]:
    return parse_names(SUITE_WITH_SETTINGS, "camera", text, CAMERA_NAMES)


def parse_state(text: str) -> str:
    require_known(SUITE_WITH_SETTINGS, "state", text, STATES)
    return text


def parse_inputs(text: str) -> tuple[str, ...]:
    chosen = parse_names(SUITE_WITH_SETTINGS, "input", text, IMAGES_BY_INPUT)
    return tuple(kind for kind in IMAGES_BY_INPUT if kind in chosen)


def parse_heights(text: str) -> tuple[float, float]:
    return parse_range("heights", text, 0.0, MAX_HEIGHT)


PARSERS: dict[str, Callable[[str], Any]] = {
    "heights": parse_heights,
    "camera": parse_camera_setting,
    "cameras": parse_cameras,
    "state": parse_state,
    "inputs": parse_inputs,
}


@dataclass(frozen=True)
class Perturbation:
    """Setting that an evaluation varies: the camera is turned by each value, or the objects are raised by it."""

    kind: str
    values: tuple[float, ...]

    def environments(self, settings: EnvironmentSettings) -> list[EnvironmentSettings]:
        """Return the environment of each value."""
        form = "fixed({},0,0)" if self.kind == "camera" else "{}"
        texts = [form.format(format_number(value)) for value in self.values]
        return [replace(settings, **{self.kind: PARSERS[self.kind](text)}) for text in texts]


def parse_perturbation(text: str, settings: EnvironmentSettings) -> Perturbation:
    """Parse a perturbation of an environment, such as `camera=0,5,10,20`."""
    kind, equals, words = text.partition("=")
    if settings.suite != SUITE_WITH_SETTINGS:
        raise UserError(f"{settings.suite} has no setting {kind!r}: only {SUITE_WITH_SETTINGS} can be perturbed")
    require_known(settings.suite, "perturbation", kind, PERTURBATIONS)
    if not equals:
        raise UserError(f"the perturbation {text!r} has no values: write it as camera=0,5,10,20")
    if getattr(settings, kind) != getattr(EnvironmentSettings(settings.suite), kind):
        raise UserError(f"{settings.name} sets {kind} already: remove it from the environment or from the perturbation")
    limits = (-MAX_AZIMUTH, MAX_AZIMUTH) if kind == "camera" else (0.0, MAX_HEIGHT)
    values = tuple(parse_number(kind, word, *limits) for word in words.split(","))
    if len(set(values)) < len(values):
        raise UserError(f"the perturbation {text!r} contains a value twice: remove one of them")
    perturbation = Perturbation(kind, values)
    perturbation.environments(settings)  # raises if the environment lacks the camera
    return perturbation
