"""What an environment is: one task of a simulator, as a policy sees it and as it acts on it.

Pictures cost far more than physics, so they are rendered when they are asked for: a policy that executes eight actions
of a chunk looks once.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Observation:
    images: dict[str, np.ndarray]  # by camera: (height, width, 3) uint8, upright
    state: np.ndarray  # (state_dim,) float32


@dataclass(frozen=True)
class DepthView:
    """One camera's depth and pose. The camera looks along its +z, x to the right and y down (as OpenCV has it)."""

    depth: np.ndarray  # (height, width) float32, meters along the optical axis
    intrinsics: np.ndarray  # (3, 3) float32, in pixels
    pose: np.ndarray  # (4, 4) float32: points of the camera to points of the world


class Environment(ABC):
    """The same seed gives the same start, on any machine and in any process."""

    suite: str  # "metaworld"
    task: str  # its name there: "drawer-open-v3"
    instruction: str  # the task as a sentence, which the policy reads
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]  # each in -1..1
    fps: int
    max_steps: int  # after which an episode has failed

    @abstractmethod
    def reset(self, seed: int) -> None: ...

    @abstractmethod
    def step(self, action: np.ndarray) -> bool:
        """One control step; whether the task is solved now. Actions are clipped to -1..1."""

    @abstractmethod
    def observe(self) -> Observation: ...

    @abstractmethod
    def depth_views(self) -> dict[str, DepthView]:
        """By camera, of the same moment and in the same pixels as `observe`."""

    @abstractmethod
    def expert_action(self) -> np.ndarray:
        """What the scripted expert does now, clipped; it may read the simulator's own state."""

    @abstractmethod
    def close(self) -> None: ...
