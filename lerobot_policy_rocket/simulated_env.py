"""rocket_hf's Meta-World environment for lerobot-eval (`--env.type=rocket_metaworld`), as used for recording.

lerobot's own `--env.type=metaworld` has the same initial states, but renders one camera with shadows at 480 pixels,
which is a hundred times slower.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import EnvConfig
from lerobot.envs.utils import freeze_after_episode_end

from rocket_hf.errors import UserError
from rocket_hf.evaluation.videos import concatenate_cameras
from rocket_hf.export.policy_folder import ACTION, IMAGES, STATE
from rocket_hf.sims.environment import Environment
from rocket_hf.sims.metaworld import MetaWorldEnvironment
from rocket_hf.sims.settings import EnvironmentSettings, parse_environment_name
from rocket_hf.sims.suites import make_environment

SUITE = "metaworld"


@EnvConfig.register_subclass("rocket_metaworld")
@dataclass
class RocketMetaWorldConfig(EnvConfig):
    """Options of `--env.type=rocket_metaworld`."""

    task: str = "reach-v3"  # one task, or several separated by commas
    environment: str = SUITE  # environment name: metaworld, optionally with settings, as in `rocket-hf eval --env`
    fps: int = MetaWorldEnvironment.fps
    image_size: int = 128
    episode_length: int | None = None
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = self.settings
        image = PolicyFeature(FeatureType.VISUAL, (self.image_size, self.image_size, 3))
        images = {f"pixels/{camera}": image for camera in settings.image_names}
        vectors = {
            "action": PolicyFeature(FeatureType.ACTION, (len(MetaWorldEnvironment.action_names),)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (len(settings.state_names),)),
        }
        self.features = vectors | images
        self.features_map = {"action": ACTION, "agent_pos": STATE}
        self.features_map |= {f"pixels/{camera}": f"{IMAGES}{camera}" for camera in settings.image_names}

    @property
    def settings(self) -> EnvironmentSettings:
        settings = parse_environment_name(self.environment)
        if settings.suite != SUITE:
            raise UserError(f"rocket_metaworld runs {SUITE} only, not {settings.suite}: use `rocket-hf eval` for it")
        return settings

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "max_steps": self.episode_length}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        tasks = [task.strip() for task in self.task.split(",")]
        return {
            SUITE: {number: self.create_vector_env(task, n_envs, use_async_envs) for number, task in enumerate(tasks)}
        }

    def create_vector_env(self, task: str, count: int, in_processes: bool) -> gym.vector.VectorEnv:
        options = self.environment, task, self.image_size, self.episode_length
        make = freeze_after_episode_end(partial(SimulatedTask, *options))
        if in_processes and count > 1:
            return gym.vector.AsyncVectorEnv([make] * count, context="spawn")
        return gym.vector.SyncVectorEnv([make] * count)


class SimulatedTask(gym.Env):
    """Gymnasium interface of a rocket_hf environment."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": MetaWorldEnvironment.fps}
    render_mode = "rgb_array"

    def __init__(self, environment: str, task: str, image_size: int, max_steps: int | None):
        self.inner: Environment = make_environment(environment, task, image_size, max_steps)
        self.task, self.task_description = task, self.inner.instruction
        self._max_episode_steps, self.steps = self.inner.max_steps, 0
        image = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        state = gym.spaces.Box(-np.inf, np.inf, (len(self.inner.state_names),), np.float32)
        images = gym.spaces.Dict({camera: image for camera in self.inner.image_names})
        self.observation_space = gym.spaces.Dict({"pixels": images, "agent_pos": state})
        self.action_space = gym.spaces.Box(-1, 1, (len(self.inner.action_names),), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict[str, Any]]:
        super().reset(seed=seed)
        self.inner.reset(seed if seed is not None else int(self.np_random.integers(2**31)))
        self.steps = 0
        return self.observe(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict[str, Any]]:
        success = self.inner.step(action)
        self.steps += 1
        ended = self.steps >= self.inner.max_steps
        return self.observe(), float(success), success, ended and not success, {"is_success": success}

    def observe(self) -> dict[str, Any]:
        observation = self.inner.observe()
        return {"pixels": dict(observation.images), "agent_pos": observation.state}

    def render(self) -> np.ndarray:
        return concatenate_cameras(self.inner.observe())

    def close(self) -> None:
        self.inner.close()
