"""MetaWorld as an environment: a Sawyer arm at a table, fifty tasks, each with a scripted expert.

Initial states equal those of lerobot's MetaWorld for the same seed. Shadows and reflections are disabled, because they
take nine tenths of the rendering time.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocket_hf.errors import UserError

from .environment import DepthView, Environment, Observation
from .headless import import_mujoco
from .metaworld_tasks import INSTRUCTIONS
from .mujoco_camera import IDENTITY, close_renderer, intrinsics, open_renderer, pose
from .names import require_known

CAMERAS = ("corner2", "gripperPOV")
UPSIDE_DOWN = frozenset({"corner2"})  # MetaWorld's camera is upside down; its images are rotated by 180 degrees
CORNER2_POSITION = (0.75, 0.075, 0.7)  # as in lerobot and in published evaluations: nearer than MetaWorld's default
MAX_STEPS = 200  # successful experts need 32 to 169 steps; the benchmark allows 500
HALF_TURN = np.diag([-1.0, -1.0, 1.0])


class MetaWorldEnvironment(Environment):
    """One task of MetaWorld."""

    suite = "metaworld"
    state_names = ("x", "y", "z", "gripper")
    action_names = ("x", "y", "z", "gripper")
    fps = 80

    def __init__(
        self, task: str, image_size: int = 128, cameras: Sequence[str] = CAMERAS, max_steps: int = MAX_STEPS
    ) -> None:
        require_known("MetaWorld", "task", task, INSTRUCTIONS)
        self.task, self.instruction = task, INSTRUCTIONS[task]
        self.image_size, self.max_steps = image_size, max_steps
        self._wrapped_env = make_metaworld_env(task, max_steps)
        self._renderer = make_renderer(self._wrapped_env.model, image_size)
        known = [self._wrapped_env.model.camera(index).name for index in range(self._wrapped_env.model.ncam)]
        for camera in cameras:
            require_known("MetaWorld", "camera", camera, known)
        self.cameras = tuple(cameras)
        self._expert = make_expert(task)
        self._raw = np.zeros(0)  # MetaWorld's observation, which contains the poses of all objects

    def reset(self, seed: int) -> None:
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
        return Observation(images, self._raw[:4].astype(np.float32))

    def depth_views(self) -> dict[str, DepthView]:
        self._renderer.enable_depth_rendering()
        depths = {camera: self._render(camera) for camera in self.cameras}
        self._renderer.disable_depth_rendering()
        model, size = self._wrapped_env.model, self.image_size
        return {
            camera: DepthView(depths[camera], intrinsics(model, camera, size), self._pose(camera))
            for camera in self.cameras
        }

    def expert_action(self) -> np.ndarray:
        with warnings.catch_warnings(action="ignore"):  # warnings about large actions, which are clipped here
            return np.clip(self._expert.get_action(self._raw), -1, 1).astype(np.float32)

    def close(self) -> None:
        close_renderer(self._renderer)
        self._wrapped_env.close()

    def _render(self, camera: str) -> np.ndarray:
        self._renderer.update_scene(self._wrapped_env.data, camera)
        image = self._renderer.render()
        return np.ascontiguousarray(image[::-1, ::-1]) if camera in UPSIDE_DOWN else image

    def _pose(self, camera: str) -> np.ndarray:
        return pose(self._wrapped_env.data, camera, HALF_TURN if camera in UPSIDE_DOWN else IDENTITY)


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
