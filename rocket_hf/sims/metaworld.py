"""MetaWorld as an environment: a Sawyer arm at a table, fifty tasks, each with a scripted expert.

Starts are those of lerobot's own MetaWorld for the same seed. Shadows and reflections are off: they are nine tenths of
what a picture costs here.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocket_hf.errors import UserError

from .environment import DepthView, Environment, Observation
from .headless import use_offscreen_rendering
from .metaworld_tasks import INSTRUCTIONS
from .mujoco_camera import AS_IT_IS, close_renderer, intrinsics, open_renderer, pose
from .names import require_known

CAMERAS = ("corner2", "gripperPOV")
UPSIDE_DOWN = frozenset({"corner2"})  # MetaWorld mounts it so; its pictures are turned by half a turn
CORNER2_POSITION = (0.75, 0.075, 0.7)  # where lerobot and the benchmark's users put it: nearer than MetaWorld does
MAX_STEPS = 200  # successful experts need 32 to 169; the benchmark allows 500
HALF_TURN = np.diag([-1.0, -1.0, 1.0])


class MetaWorldEnvironment(Environment):
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
        self._world = make_world(task, max_steps)
        self._renderer = make_renderer(self._world.model, image_size)
        known = [self._world.model.camera(index).name for index in range(self._world.model.ncam)]
        for camera in cameras:
            require_known("MetaWorld", "camera", camera, known)
        self.cameras = tuple(cameras)
        self._expert = make_expert(task)
        self._raw = np.zeros(0)  # MetaWorld's own observation, which holds the poses of all objects

    def reset(self, seed: int) -> None:
        self._world.seed(seed)
        self._world.reset(seed=seed)
        show_placed(self._world)
        self._raw = self._world._get_obs()
        self._expert = make_expert(self.task)

    def step(self, action: np.ndarray) -> bool:
        self._raw, _, _, _, info = self._world.step(np.clip(action, -1, 1).astype(np.float32))
        return bool(info["success"])

    def observe(self) -> Observation:
        images = {camera: self._render(camera) for camera in self.cameras}
        return Observation(images, self._raw[:4].astype(np.float32))

    def depth_views(self) -> dict[str, DepthView]:
        self._renderer.enable_depth_rendering()
        depths = {camera: self._render(camera) for camera in self.cameras}
        self._renderer.disable_depth_rendering()
        model, size = self._world.model, self.image_size
        return {
            camera: DepthView(depths[camera], intrinsics(model, camera, size), self._pose(camera))
            for camera in self.cameras
        }

    def expert_action(self) -> np.ndarray:
        with warnings.catch_warnings(action="ignore"):  # of actions that are too large, which are clipped here
            return np.clip(self._expert.get_action(self._raw), -1, 1).astype(np.float32)

    def close(self) -> None:
        close_renderer(self._renderer)
        self._world.close()

    def _render(self, camera: str) -> np.ndarray:
        self._renderer.update_scene(self._world.data, camera)
        picture = self._renderer.render()
        return np.ascontiguousarray(picture[::-1, ::-1]) if camera in UPSIDE_DOWN else picture

    def _pose(self, camera: str) -> np.ndarray:
        return pose(self._world.data, camera, HALF_TURN if camera in UPSIDE_DOWN else AS_IT_IS)


def make_world(task: str, max_steps: int) -> Any:
    """MetaWorld's environment with the goal in its observation, which the expert reads, and starts drawn by seed."""
    use_offscreen_rendering()
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: run `pip install 'rocket-hf[sim]'`") from error
    world = ALL_V3_ENVIRONMENTS[task]()
    world._partially_observable = False
    vars(world).pop("sawyer_observation_space", None)  # a cached property, which hides the goal until it is made anew
    world._freeze_rand_vec, world.seeded_rand_vec = False, True
    world._set_task_called = True
    world.max_path_length = max(max_steps, world.max_path_length)
    world.model.camera("corner2").pos = CORNER2_POSITION
    return world


def show_placed(world: Any) -> None:
    """Bodies where the start has put them: MetaWorld moves some after the last time that poses were computed.

    Poses alone are computed anew, so that the physics goes on as in MetaWorld itself.
    """
    import mujoco

    mujoco.mj_kinematics(world.model, world.data)
    mujoco.mj_comPos(world.model, world.data)
    mujoco.mj_camlight(world.model, world.data)


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
