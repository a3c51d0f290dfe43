"""LIBERO as an environment: a Panda arm, 130 household tasks in five suites, each with fifty stored starts.

States, pictures and physics are lerobot's own of LIBERO, bit for bit, drawn only when somebody looks. Pictures are
turned by half a turn, as in the public datasets; since robosuite's are upside down, that makes them mirror images.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .environment import DepthView, Environment, Observation
from .libero_expert import PickAndPlace
from .libero_files import benchmark_file, import_libero, stored_starts
from .libero_tasks import GROUPS, STEP_LIMITS, WAITING_ACTION, WAITING_STEPS
from .mujoco_camera import close_renderer, intrinsics, open_renderer, pose
from .names import require_known

CAMERAS = {"image": "agentview", "image2": "robot0_eye_in_hand"}  # lerobot's names, robosuite's names
SERIES = 1_000_000  # seeds apart: where an expert fails, the next start is tried, not the same again
COLLISION_SHAPES = 0  # a group of geoms that robosuite hides
MIRRORED_CAMERA, MIRRORED_WORLD = np.diag([-1.0, 1.0, 1.0]), np.diag([1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Scene:
    """A task of the benchmark's, made."""

    world: Any
    instruction: str
    starts: Path


class LiberoEnvironment(Environment):
    """Seed k starts from the stored start k, modulo their number; what the store leaves open is drawn by the seed."""

    suite = "libero"
    cameras = tuple(CAMERAS)
    state_names = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_left", "finger_right")
    action_names = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "gripper")
    fps = 20

    def __init__(self, task: str, image_size: int = 128, max_steps: int | None = None) -> None:
        """`max_steps` None: as the benchmark has it."""
        self.task, self.image_size = task, image_size
        scene = self._scene(task)
        self.benchmark = task.partition("/")[0]
        self.max_steps = max_steps or STEP_LIMITS[self.benchmark]
        self.instruction, self._world = scene.instruction, scene.world
        self._starts = stored_starts(scene.starts)
        self._moment = Moment(self._world)
        self._observed: dict[str, np.ndarray] = {}
        self._renderer: Any = None
        self._expert: PickAndPlace | None = None

    def _scene(self, task: str) -> Scene:
        benchmark, number = task_number(task)
        libero = import_libero()
        from libero.libero.envs.env_wrapper import ControlEnv

        described = list(libero.benchmark.task_maps[benchmark].values())[number]
        starts = benchmark_file(libero, "init_states", benchmark, described.init_states_file)
        world = make_world(ControlEnv, benchmark_file(libero, "bddl_files", benchmark, described.bddl_file))
        return Scene(world, described.language, starts)

    def reset(self, seed: int) -> None:
        self._world.seed(seed % 2**32)
        self._world.reset()
        self._world.set_init_state(self._starts[(seed + seed // SERIES) % len(self._starts)])
        for _ in range(WAITING_STEPS):
            self.step(np.array(WAITING_ACTION))
        self._expert = None

    def step(self, action: np.ndarray) -> bool:
        self._observed, _, solved, _ = self._world.step(np.clip(action, -1, 1))
        return bool(solved)

    def observe(self) -> Observation:
        images = {camera: self._render(name) for camera, name in CAMERAS.items()}
        return Observation(images, self._state())

    def depth_views(self) -> dict[str, DepthView]:
        """In the mirrored world that the pictures show: its y is the negative of the state's."""
        self._open_renderer().enable_depth_rendering()
        depths = {camera: self._render(name) for camera, name in CAMERAS.items()}
        self._renderer.disable_depth_rendering()
        model, data, size = self._moment.model, self._moment.data, self.image_size
        return {
            camera: DepthView(
                depths[camera], intrinsics(model, name, size), pose(data, name, MIRRORED_CAMERA, MIRRORED_WORLD)
            )
            for camera, name in CAMERAS.items()
        }

    def expert_action(self) -> np.ndarray:
        if self._expert is None:
            self._expert = PickAndPlace(self.benchmark, self._world.env)
        return self._expert.action()

    def close(self) -> None:
        if self._renderer is not None:
            close_renderer(self._renderer)
            self._renderer = None
        self._world.close()

    def _state(self) -> np.ndarray:
        """(8,) float32"""
        parts = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
        position, quaternion, fingers = (self._observed[part] for part in parts)
        return np.concatenate([position, axis_angle(quaternion), fingers]).astype(np.float32)

    def _render(self, camera: str) -> np.ndarray:
        """A picture (H, W, 3) uint8 or depth (H, W) float32, as the public datasets show it."""
        import mujoco

        renderer, seen = self._open_renderer(), mujoco.MjvOption()
        seen.geomgroup[COLLISION_SHAPES] = 0
        copy_colors(self._moment.model, renderer.model)
        renderer.update_scene(self._moment.data, camera, seen)
        return np.ascontiguousarray(renderer.render()[:, ::-1])

    def _open_renderer(self) -> Any:
        """Made once, for the model of the first look: others of this task differ in where things are, not in shape."""
        if self._renderer is None:
            self._renderer = open_renderer(self._moment.model, self.image_size)
        return self._renderer


class Moment:
    """What robosuite's cameras would have seen last. They look a few milliseconds before a step ends; a sensor that
    comes with theirs remembers the world as it is then, so that it can be drawn later."""

    def __init__(self, world: Any) -> None:
        from robosuite.utils.observables import Observable, sensor

        self.simulation = world.env
        self.model: Any = None
        self.data: Any = None
        watch = sensor(modality="object")(lambda cache: self.remember())
        self.simulation._observables["moment"] = Observable("moment", watch, sampling_rate=LiberoEnvironment.fps)

    def remember(self) -> float:
        import mujoco

        model = self.simulation.sim.model._model
        if model is not self.model:  # each reset makes a new one
            self.model, self.data = model, mujoco.MjData(model)
        mujoco.mj_copyData(self.data, model, self.simulation.sim.data._data)
        return 0.0


def task_number(task: str) -> tuple[str, int]:
    """`libero_spatial/3` is the fourth task of that suite."""
    benchmark, _, number = task.partition("/")
    require_known("LIBERO", "suite", benchmark, GROUPS)
    require_known(benchmark, "task", task, GROUPS[benchmark])
    return benchmark, int(number)


def make_world(control: Any, description: Path) -> Any:
    """By the benchmark's own class ControlEnv, which then draws nothing by itself."""
    return control(
        bddl_file_name=str(description), has_offscreen_renderer=False, use_camera_obs=False, ignore_done=True
    )


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """(3,) from x, y, z, w, with angles of 0 to a whole turn, as robosuite has them: the same rotation may have two."""
    half = np.arccos(np.clip(quaternion[3], -1.0, 1.0))
    length = np.sqrt(1.0 - np.clip(quaternion[3], -1.0, 1.0) ** 2)
    return np.zeros(3) if length < 1e-10 else quaternion[:3] * 2.0 * half / length


def copy_colors(source: Any, target: Any) -> None:
    """A stove that is turned on glows."""
    for name in ("geom_rgba", "site_rgba", "mat_rgba"):
        np.copyto(getattr(target, name), getattr(source, name))
