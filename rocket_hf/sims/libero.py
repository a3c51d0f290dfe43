"""LIBERO as an environment: a Panda arm, 130 household tasks in five suites, each with fifty stored initial states.

States, images and physics are identical to lerobot's LIBERO, but images are rendered only on request. Images are
rotated by 180 degrees, as in the public datasets. Because robosuite's images are upside down, the result is a mirror
image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .environment import DepthView, Environment, Observation
from .libero_expert import PickAndPlace
from .libero_files import benchmark_file, import_libero, load_initial_states
from .libero_tasks import SETTLING_ACTION, SETTLING_STEPS, STEP_LIMITS, TASK_GROUPS
from .mujoco_camera import close_renderer, intrinsics, open_renderer, pose
from .names import require_known

CAMERAS = {"image": "agentview", "image2": "robot0_eye_in_hand"}  # lerobot's name: robosuite's name
# Seeds that differ by this number use adjacent initial states, so that a failed expert does not repeat the same one.
SEED_SERIES = 1_000_000
COLLISION_GROUP = 0  # group of geoms that robosuite does not render
MIRRORED_IMAGE, MIRRORED_WORLD = np.diag([-1.0, 1.0, 1.0]), np.diag([1.0, -1.0, 1.0])


@dataclass(frozen=True)
class LiberoTask:
    """A task of the benchmark: its environment, its instruction and the file of its initial states."""

    control_env: Any
    instruction: str
    initial_states: Path


class LiberoEnvironment(Environment):
    """One task of LIBERO.

    Seed k selects the stored initial state k, modulo their number; the seed also draws what is not stored.
    """

    suite = "libero"
    cameras = tuple(CAMERAS)
    state_names = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_left", "finger_right")
    action_names = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "gripper")
    fps = 20

    def __init__(self, task: str, image_size: int = 128, max_steps: int | None = None) -> None:
        """Create the environment. By default `max_steps` is the benchmark's limit."""
        self.task, self.image_size = task, image_size
        loaded = self._load_task(task)
        self.benchmark = task.partition("/")[0]
        self.max_steps = max_steps or STEP_LIMITS[self.benchmark]
        self.instruction, self._control_env = loaded.instruction, loaded.control_env
        self._initial_states = load_initial_states(loaded.initial_states)
        self._snapshot = SimulationSnapshot(self._control_env)
        self._observed: dict[str, np.ndarray] = {}
        self._renderer: Any = None
        self._expert: PickAndPlace | None = None

    def _load_task(self, task: str) -> LiberoTask:
        benchmark, number = parse_libero_task(task)
        libero = import_libero()
        from libero.libero.envs.env_wrapper import ControlEnv

        description = list(libero.benchmark.task_maps[benchmark].values())[number]
        initial_states = benchmark_file(libero, "init_states", benchmark, description.init_states_file)
        definition = benchmark_file(libero, "bddl_files", benchmark, description.bddl_file)
        return LiberoTask(make_control_env(ControlEnv, definition), description.language, initial_states)

    def reset(self, seed: int) -> None:
        self._control_env.seed(seed % 2**32)
        self._control_env.reset()
        self._control_env.set_init_state(self._initial_states[(seed + seed // SEED_SERIES) % len(self._initial_states)])
        for _ in range(SETTLING_STEPS):
            self.step(np.array(SETTLING_ACTION))
        self._expert = None

    def step(self, action: np.ndarray) -> bool:
        self._observed, _, is_solved, _ = self._control_env.step(np.clip(action, -1, 1))
        return bool(is_solved)

    def observe(self) -> Observation:
        images = {camera: self._render(name) for camera, name in CAMERAS.items()}
        return Observation(images, self._state())

    def depth_views(self) -> dict[str, DepthView]:
        """Return depth and poses in the mirrored world that the images show: y is the negative of the state's y."""
        self._open_renderer().enable_depth_rendering()
        depths = {camera: self._render(name) for camera, name in CAMERAS.items()}
        self._renderer.disable_depth_rendering()
        model, data, size = self._snapshot.model, self._snapshot.data, self.image_size
        return {
            camera: DepthView(
                depths[camera], intrinsics(model, name, size), pose(data, name, MIRRORED_IMAGE, MIRRORED_WORLD)
            )
            for camera, name in CAMERAS.items()
        }

    def expert_action(self) -> np.ndarray:
        if self._expert is None:
            self._expert = PickAndPlace(self.benchmark, self._control_env.env)
        return self._expert.action()

    def close(self) -> None:
        if self._renderer is not None:
            close_renderer(self._renderer)
            self._renderer = None
        self._control_env.close()

    def _state(self) -> np.ndarray:
        """Return the robot state (8,) float32: position, axis-angle rotation and both fingers."""
        parts = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
        position, quaternion, fingers = (self._observed[part] for part in parts)
        return np.concatenate([position, axis_angle(quaternion), fingers]).astype(np.float32)

    def _render(self, camera: str) -> np.ndarray:
        """Render an image (H, W, 3) uint8 or depth (H, W) float32, mirrored as in the public datasets."""
        import mujoco

        renderer, options = self._open_renderer(), mujoco.MjvOption()
        options.geomgroup[COLLISION_GROUP] = 0
        copy_colors(self._snapshot.model, renderer.model)
        renderer.update_scene(self._snapshot.data, camera, options)
        return np.ascontiguousarray(renderer.render()[:, ::-1])

    def _open_renderer(self) -> Any:
        """Create the renderer once: the models of one task differ in the positions of objects, not in their shapes."""
        if self._renderer is None:
            self._renderer = open_renderer(self._snapshot.model, self.image_size)
        return self._renderer


class SimulationSnapshot:
    """Copy of the simulation at the time of robosuite's last camera observation.

    robosuite's cameras observe a few milliseconds before a step ends. A sensor with the same timing copies the
    simulation then, so that it can be rendered later.
    """

    def __init__(self, control_env: Any) -> None:
        from robosuite.utils.observables import Observable, sensor

        self.simulation = control_env.env
        self.model: Any = None
        self.data: Any = None
        copying_sensor = sensor(modality="object")(lambda cache: self.copy())
        self.simulation._observables["snapshot"] = Observable(
            "snapshot", copying_sensor, sampling_rate=LiberoEnvironment.fps
        )

    def copy(self) -> float:
        import mujoco

        model = self.simulation.sim.model._model
        if model is not self.model:  # each reset creates a new model
            self.model, self.data = model, mujoco.MjData(model)
        mujoco.mj_copyData(self.data, model, self.simulation.sim.data._data)
        return 0.0


def parse_libero_task(task: str) -> tuple[str, int]:
    """Return the suite and the 0-based number of a task such as `libero_spatial/3`."""
    benchmark, _, number = task.partition("/")
    require_known("LIBERO", "suite", benchmark, TASK_GROUPS)
    require_known(benchmark, "task", task, TASK_GROUPS[benchmark])
    return benchmark, int(number)


def make_control_env(control_env: Any, description: Path) -> Any:
    """Create the benchmark's environment from its class ControlEnv, without rendering."""
    return control_env(
        bddl_file_name=str(description), has_offscreen_renderer=False, use_camera_obs=False, ignore_done=True
    )


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Convert a quaternion (x, y, z, w) to axis times angle (3,).

    The angle is in 0..2 pi as in robosuite, so a rotation has two representations.
    """
    half = np.arccos(np.clip(quaternion[3], -1.0, 1.0))
    length = np.sqrt(1.0 - np.clip(quaternion[3], -1.0, 1.0) ** 2)
    return np.zeros(3) if length < 1e-10 else quaternion[:3] * 2.0 * half / length


def copy_colors(source: Any, target: Any) -> None:
    """Copy the colors of a model, which change during an episode: a stove that is turned on glows."""
    for name in ("geom_rgba", "site_rgba", "mat_rgba"):
        np.copyto(getattr(target, name), getattr(source, name))
