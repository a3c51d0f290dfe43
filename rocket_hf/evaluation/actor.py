"""A policy in front of environments: a batch of what they show to the actions that each executes."""

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
from rocket_hf.modeling.strict_config import nearest
from rocket_hf.sims.environment import Observation

from .environments import Robot
from .protocol import PLAIN, Protocol


@dataclass(frozen=True)
class View:
    """What one episode shows at one of its steps."""

    task: str
    seed: int
    step: int
    instruction: str
    observation: Observation


@dataclass
class Actor:
    """`cameras` maps the policy's cameras to the environment's where their names differ; `execute` is how many
    actions of a chunk are executed before the policy looks again, None for all."""

    policy: RocketForActionPrediction
    processor: RocketProcessor
    execute: int | None = None
    cameras: dict[str, str] = field(default_factory=dict)
    protocol: Protocol = PLAIN

    def __post_init__(self) -> None:
        chunk = self.policy.config.chunk_size
        if self.execute is not None and not 1 <= self.execute <= chunk:
            raise UserError(
                f"of this policy's chunks of {chunk} actions, 1 to {chunk} can be executed, not {self.execute}"
            )
        for camera in self.cameras:
            if camera not in self.policy.config.cameras:
                raise UserError(f"this policy has no camera {camera!r}: {nearest(camera, self.policy.config.cameras)}")

    def __call__(self, views: Sequence[View]) -> list[np.ndarray]:
        """For each view, actions (execute, action_dim) in robot units."""
        config = self.policy.config
        sources = {camera: self.cameras.get(camera, camera) for camera in config.cameras}
        images = {
            camera: np.stack([self.protocol.picture(view.observation.images[source]) for view in views])
            for camera, source in sources.items()
        }
        states = np.stack([view.observation.state for view in views])
        batch = self.processor(images=images, task=[view.instruction for view in views], state=states)
        batch["state"] = self.protocol.state(batch["state"])
        if config.policy_config.draws_noise:
            batch["noise"] = torch.stack([self.noise(view) for view in views])
        batch = {name: value.to(self.policy.device) for name, value in batch.items()}
        actions = self.policy.predict_action_chunk(**batch).float().cpu()  # (B, chunk, A)
        actions = self.protocol.actions(self.processor.unnormalize_actions(actions))
        return list(actions[:, : self.execute].numpy())

    def noise(self, view: View) -> Tensor:
        """(chunk, widest action), the same for the same moment of an episode whatever else is in the batch."""
        text = f"{view.task} {view.seed} {view.step}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
        config = self.policy.config
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(config.chunk_size, config.policy_config.max_action_dim, generator=generator)

    def require_fit(self, robot: Robot) -> None:
        """A policy of other cameras or dimensions than the environment is refused, the two side by side."""
        config = self.policy.config
        missing = [camera for camera in config.cameras if self.cameras.get(camera, camera) not in robot.cameras]
        state, action = len(robot.state_names), len(robot.action_names)
        if missing or config.state_dim != state or config.action_dim != action:
            raise UserError(
                f"the policy has {spoken(config)}; the environment has cameras {', '.join(robot.cameras)}, "
                f"state {state} and action {action}: "
                + (
                    f"name the environment's camera for {missing[0]!r} by --cameras {missing[0]}={robot.cameras[0]}"
                    if missing and (config.state_dim, config.action_dim) == (state, action)
                    else "adapt the policy to this robot by `rocket-hf adapt`"
                )
            )


def spoken(config: RocketConfig) -> str:
    return f"cameras {', '.join(config.cameras)}, state {config.state_dim} and action {config.action_dim}"
