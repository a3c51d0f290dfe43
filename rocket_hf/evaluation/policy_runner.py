"""Inference of a vision-language-action policy on a batch of running episodes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.strict_config import suggest_name
from rocket_hf.sims.environment import Observation

from .episode_simulator import RobotInterface
from .protocol import PLAIN, EvaluationProtocol


@dataclass(frozen=True)
class PolicyInput:
    """Observation of one episode at one step. Task, seed and step also seed the policy's noise."""

    task: str
    seed: int
    step: int
    instruction: str
    observation: Observation


@dataclass
class PolicyRunner:
    """A policy with its processor and the settings of its inference.

    `cameras` maps the policy's cameras to those of the environment if their names differ. `execute` is the number of
    actions of a chunk to execute before the next observation (None: all).
    """

    policy: RocketForActionPrediction
    processor: RocketProcessor
    execute: int | None = None
    cameras: dict[str, str] = field(default_factory=dict)
    protocol: EvaluationProtocol = PLAIN

    def __post_init__(self) -> None:
        chunk = self.policy.config.chunk_size
        if self.execute is not None and not 1 <= self.execute <= chunk:
            raise UserError(f"--execute must be 1 to {chunk}, the length of this policy's chunks, not {self.execute}")
        for camera in self.cameras:
            if camera not in self.policy.config.cameras:
                raise UserError(
                    f"this policy has no camera {camera!r}: {suggest_name(camera, self.policy.config.cameras)}"
                )

    def environment_camera(self, camera: str) -> str:
        """Return the environment's name of a camera of the policy."""
        return self.cameras.get(camera, camera)

    def __call__(self, inputs: Sequence[PolicyInput]) -> list[np.ndarray]:
        """Return for each input the actions to execute, (execute, action_dim), in robot units."""
        config = self.policy.config
        images = {camera: self.camera_images(self.environment_camera(camera), inputs) for camera in config.cameras}
        states = np.stack([each.observation.state for each in inputs])
        batch = self.processor(images=images, task=[each.instruction for each in inputs], state=states)
        batch["state"] = self.protocol.convert_state(batch["state"])
        if config.policy_config.draws_noise:
            batch["noise"] = torch.stack([self.noise(each) for each in inputs])
        batch = {name: value.to(self.policy.device) for name, value in batch.items()}
        actions = self.policy.predict_action_chunk(**batch).float().cpu()  # (B, chunk, A)
        actions = self.protocol.convert_actions(self.processor.unnormalize_actions(actions))
        return list(actions[:, : self.execute].numpy())

    def camera_images(self, camera: str, inputs: Sequence[PolicyInput]) -> np.ndarray:
        return np.stack([self.protocol.convert_image(each.observation.images[camera]) for each in inputs])

    def noise(self, episode: PolicyInput) -> Tensor:
        """Draw noise, (chunk, maximum action dimension), that does not depend on the other inputs of the batch."""
        text = f"{episode.task} {episode.seed} {episode.step}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
        config = self.policy.config
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(config.chunk_size, config.policy_config.max_action_dim, generator=generator)

    def require_fit(self, robot: RobotInterface) -> None:
        """Raise a UserError if the policy's cameras or dimensions are not those of the environment."""
        config = self.policy.config
        missing = [camera for camera in config.cameras if self.environment_camera(camera) not in robot.cameras]
        state, action = len(robot.state_names), len(robot.action_names)
        if missing or config.state_dim != state or config.action_dim != action:
            raise UserError(
                f"the policy has {describe_interface(config)}; the environment has cameras {', '.join(robot.cameras)}, "
                f"state {state} and action {action}: "
                + (
                    f"name the environment's camera for {missing[0]!r} by --cameras {missing[0]}={robot.cameras[0]}"
                    if missing and (config.state_dim, config.action_dim) == (state, action)
                    else "adapt the policy to this robot by `rocket-hf adapt`"
                )
            )


def describe_interface(config: RocketConfig) -> str:
    return f"cameras {', '.join(config.cameras)}, state {config.state_dim} and action {config.action_dim}"
