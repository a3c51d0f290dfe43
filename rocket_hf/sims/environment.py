"""Interface of environments: one task of a simulator, with a policy's observations and actions.

Rendering costs far more than physics, so images are rendered only on request: a policy that executes eight actions of a
chunk needs one observation.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Observation:
    """Camera images and robot state at one step."""

    images: dict[str, np.ndarray]  # (height, width, 3) uint8 for each camera, upright, and for each computed image
    state: np.ndarray  # (state_dim,) float32


@dataclass(frozen=True)
class DepthView:
    """Depth and pose of one camera. Camera axes as in OpenCV: z forward, x to the right, y down."""

    depth: np.ndarray  # (height, width) float32, meters along the optical axis
    intrinsics: np.ndarray  # (3, 3) float32, in pixels
    pose: np.ndarray  # (4, 4) float32, maps points from camera to world coordinates


class Environment(ABC):
    """One task of a simulator. The same seed gives the same initial state on any machine and in any process."""

    suite: str  # such as "metaworld"
    task: str  # name in the suite, such as "drawer-open-v3"
    instruction: str  # the task as a sentence, the text input of a policy
    cameras: tuple[str, ...]
    computed_images: tuple[str, ...] = ()  # further images beside those of the cameras, such as world coordinates
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]  # each action is in -1..1
    fps: int
    max_steps: int  # an episode that is longer has failed

    @property
    def image_names(self) -> tuple[str, ...]:
        return self.cameras + self.computed_images

    @abstractmethod
    def reset(self, seed: int) -> None: ...

    @abstractmethod
    def step(self, action: np.ndarray) -> bool:
        """Run one control step and return whether the task is solved. Actions are clipped to -1..1."""

    @abstractmethod
    def observe(self) -> Observation: ...

    @abstractmethod
    def depth_views(self) -> dict[str, DepthView]:
        """Return the depth and pose of each camera, at the same time and with the same pixels as `observe`."""

    @abstractmethod
    def expert_action(self) -> np.ndarray:
        """Return the scripted expert's next action, clipped to -1..1. The expert may read the simulator's state."""

    @abstractmethod
    def close(self) -> None: ...
