"""MetaWorld as an environment: a Sawyer arm at a table, fifty tasks, each with a scripted expert.

Initial states equal those of lerobot's MetaWorld for the same seed, unless settings change them. Shadows and
reflections are disabled, because they take nine tenths of the rendering time.
"""

import warnings
from typing import Any

import numpy as np

from rocket_hf.errors import UserError

from .environment import DepthView, Environment, Observation
from .geometry_images import INPUTS_FROM_DEPTH, geometry_images
from .headless import import_mujoco
from .metaworld_tasks import INSTRUCTIONS, REACHING_TASKS
from .mujoco_camera import IDENTITY, MovableCamera, close_renderer, intrinsics, open_renderer, pose
from .names import require_known
from .settings import MOVING_CAMERA, ROBOT_STATE, EnvironmentSettings

UPSIDE_DOWN = frozenset({"corner2"})  # MetaWorld's camera is upside down; its images are rotated by 180 degrees
CORNER2_POSITION = (0.75, 0.075, 0.7)  # as in lerobot and in published evaluations: nearer than MetaWorld's default
MAX_STEPS = 200  # successful experts need 32 to 169 steps; the benchmark allows 500
HALF_TURN = np.diag([-1.0, -1.0, 1.0])
OBJECT_POSITION, GOAL_POSITION = slice(4, 7), slice(-3, None)  # in MetaWorld's observation
DEFAULT_SETTINGS = EnvironmentSettings("metaworld")


class MetaWorldEnvironment(Environment):
    """One task of MetaWorld."""

    suite = "metaworld"
    action_names = ("x", "y", "z", "gripper")
    fps = 80

    def __init__(
        self,
        task: str,
        image_size: int = 128,
        max_steps: int = MAX_STEPS,
        settings: EnvironmentSettings = DEFAULT_SETTINGS,
    ) -> None:
        require_known("MetaWorld", "task", task, INSTRUCTIONS)
        settings.require_task(task)
        self.task, self.instruction, self.settings = task, INSTRUCTIONS[task], settings
        self.cameras, self.computed_images = settings.cameras, settings.computed_images
        self.state_names = settings.state_names
        self.image_size, self.max_steps = image_size, max_steps
        self._wrapped_env = make_metaworld_env(task, max_steps)
        self._renderer = make_renderer(self._wrapped_env.model, image_size)
        self._moving_camera = MovableCamera(self._wrapped_env.model, MOVING_CAMERA)
        self._starts = StartHeights(self._wrapped_env)
        self._expert = make_expert(task)
        self._raw = np.zeros(0)  # MetaWorld's observation, which contains the poses of all objects

    def reset(self, seed: int) -> None:
        self._starts.raise_by(self.settings.draw_height(self.task, seed))
        self._moving_camera.move(self.settings.draw_camera_motion(self.task, seed))
        self._wrapped_env.seed(seed)
        self._wrapped_env.reset(seed=seed)
        update_poses(self._wrapped_env)
        self._raw = self._wrapped_env._get_obs()
        self._expert = make_expert(self.task)

    def step(self, action: np.ndarray) -> bool:
        self._raw, _, _, _, info = self._wrapped_env.step(np.clip(action, -1, 1).astype(np.float32))
        return bool(info["success"])

    def observe(self) -> Observation:
        images = {camera: self._render(camera) for camera in self.cameras}
        return Observation(images | self._render_geometry(), self._state())

    def depth_views(self) -> dict[str, DepthView]:
        depths = self._render_depth(self.cameras)
        return {camera: self._view(camera, depth) for camera, depth in depths.items()}

    def expert_action(self) -> np.ndarray:
        with warnings.catch_warnings(action="ignore"):  # warnings about large actions, which are clipped here
            return np.clip(self._expert.get_action(self._raw), -1, 1).astype(np.float32)

    def close(self) -> None:
        close_renderer(self._renderer)
        self._wrapped_env.close()

    def _state(self) -> np.ndarray:
        robot = self._raw[: len(ROBOT_STATE)]
        if self.settings.state == "none":
            robot = np.zeros(len(ROBOT_STATE))
        elif self.settings.state == "object":
            is_reaching = self.task in REACHING_TASKS
            position = self._raw[GOAL_POSITION] if is_reaching else self._raw[OBJECT_POSITION]
            robot = np.concatenate([robot, position])
        return robot.astype(np.float32)

    def _render_geometry(self) -> dict[str, np.ndarray]:
        """Return the computed images of the third-person cameras."""
        inputs, cameras = self.settings.inputs, self.settings.third_person_cameras
        if not inputs:
            return {}
        depths = dict.fromkeys(cameras, np.zeros((self.image_size, self.image_size), np.float32))
        if not INPUTS_FROM_DEPTH.isdisjoint(inputs):
            depths = self._render_depth(cameras)
        return {
            f"{camera}_{ending}": image
            for camera in cameras
            for kind in inputs
            for ending, image in geometry_images(kind, self._view(camera, depths[camera])).items()
        }

    def _render_depth(self, cameras: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Return the depth of each camera, (height, width) float32."""
        self._renderer.enable_depth_rendering()
        depths = {camera: self._render(camera) for camera in cameras}
        self._renderer.disable_depth_rendering()
        return depths

    def _view(self, camera: str, depth: np.ndarray) -> DepthView:
        return DepthView(depth, intrinsics(self._wrapped_env.model, camera, self.image_size), self._pose(camera))

    def _render(self, camera: str) -> np.ndarray:
        self._renderer.update_scene(self._wrapped_env.data, camera)
        image = self._renderer.render()
        return np.ascontiguousarray(image[::-1, ::-1]) if camera in UPSIDE_DOWN else image

    def _pose(self, camera: str) -> np.ndarray:
        return pose(self._wrapped_env.data, camera, HALF_TURN if camera in UPSIDE_DOWN else IDENTITY)


class StartHeights:
    """Heights of a task's objects at the start of an episode."""

    def __init__(self, env: Any):
        self.space = env._random_reset_space  # MetaWorld draws uniformly between its `low` and `high`
        self.low, self.high = self.space.low.copy(), self.space.high.copy()

    def raise_by(self, height: float) -> None:
        """Raise all positions of the next start. MetaWorld draws as many numbers as before, for the same x and y."""
        offset = np.tile([0.0, 0.0, height], len(self.low) // 3)
        self.space.low, self.space.high = self.low + offset, self.high + offset


def make_metaworld_env(task: str, max_steps: int) -> Any:
    """Create MetaWorld's environment with seeded initial states, and with the expert's goal in its observation."""
    import_mujoco()
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: run `pip install 'rocket-hf[sim]'`") from error
    env = ALL_V3_ENVIRONMENTS[task]()
    env._partially_observable = False
    vars(env).pop("sawyer_observation_space", None)  # cached property that would still exclude the goal
    env._freeze_rand_vec, env.seeded_rand_vec = False, True
    env._set_task_called = True
    env.max_path_length = max(max_steps, env.max_path_length)
    env.model.camera("corner2").pos = CORNER2_POSITION
    return env


def update_poses(env: Any) -> None:
    """Compute the poses of all bodies again, because MetaWorld's reset moves some bodies after it has computed them.

    Only poses are computed, so that the physics stays identical to MetaWorld's.
    """
    import mujoco

    mujoco.mj_kinematics(env.model, env.data)
    mujoco.mj_comPos(env.model, env.data)
    mujoco.mj_camlight(env.model, env.data)


def make_renderer(model: Any, image_size: int) -> Any:
    import mujoco

    model.vis.quality.shadowsize = 0
    model.vis.quality.offsamples = 0
    renderer = open_renderer(model, image_size)
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
    return renderer


def make_expert(task: str) -> Any:
    from metaworld.policies import ENV_POLICY_MAP

    policy: Any = ENV_POLICY_MAP[task]
    return policy()
