"""Demonstrations: episodes that the scripted expert solves, with everything that is recorded of them.

The expert first runs without rendering, which is a hundred times faster. An episode that it solves is replayed and
rendered. The same seed gives the same initial state, so the replay is identical.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rocket_hf.errors import UserError

from .environment import Environment
from .suites import make_environment

ATTEMPTS = 50
ATTEMPT_SEED_STEP = 1_000_000  # added to the seed after each failed attempt


@dataclass(frozen=True)
class DemonstrationRequest:
    """Request to a simulator process for one episode."""

    suite: str  # environment name
    task: str
    seed: int
    image_size: int
    depth: bool


@dataclass(frozen=True)
class Demonstration:
    """One recorded episode. Its frames map the columns of the dataset to their values."""

    instruction: str
    seed: int  # seed of the attempt that succeeded
    failed_attempts: int
    frames: list[dict[str, Any]]


def demonstrate(environment: Environment, first_seed: int, depth: bool) -> Demonstration:
    """Record the first attempt that the expert solves, with the seeds first_seed + k * ATTEMPT_SEED_STEP."""
    for attempt in range(ATTEMPTS):
        seed = first_seed + attempt * ATTEMPT_SEED_STEP
        actions = solve(environment, seed)
        if actions:
            return Demonstration(environment.instruction, seed, attempt, replay(environment, seed, actions, depth))
    raise UserError(
        f"the expert of {environment.task} failed in {ATTEMPTS} attempts of {environment.max_steps} steps: "
        "remove the task from --tasks"
    )


def solve(environment: Environment, seed: int) -> list[np.ndarray]:
    """Return the expert's actions until the task is solved; an empty list if it is not."""
    environment.reset(seed)
    actions = []
    for _ in range(environment.max_steps):
        actions.append(environment.expert_action())
        if environment.step(actions[-1]):
            return actions
    return []


def replay(environment: Environment, seed: int, actions: list[np.ndarray], depth: bool) -> list[dict[str, Any]]:
    """Return the frame before each action, with the action and whether it solved the task."""
    environment.reset(seed)
    frames = []
    for action in actions:
        frame = observe_frame(environment, depth)
        is_solved = environment.step(action)
        frames.append(frame | {"action": action, "next.success": np.array([is_solved]), "seed": np.array([seed])})
    assert is_solved, f"the replay of {environment.task} with seed {seed} differs from the first run"
    return frames


def observe_frame(environment: Environment, depth: bool) -> dict[str, Any]:
    """Return the observation as columns of the dataset."""
    observation = environment.observe()
    frame = {f"observation.images.{camera}": image for camera, image in observation.images.items()}
    frame["observation.state"] = observation.state
    for camera, view in environment.depth_views().items() if depth else ():
        frame[f"observation.images.{camera}_depth"] = view.depth[..., None]
        frame[f"camera.{camera}.intrinsics"] = view.intrinsics.reshape(-1)
        frame[f"camera.{camera}.pose"] = view.pose.reshape(-1)
    return frame


class ExpertSimulator:
    """Simulator that records demonstrations. It keeps the last environment, because creating one takes longer than an
    episode."""

    def __init__(self) -> None:
        self.environment: Environment | None = None

    def handle(self, request: DemonstrationRequest) -> Demonstration:
        if self.environment is None or self.environment.task != request.task:
            self.close()
            self.environment = make_environment(request.suite, request.task, request.image_size)
        return demonstrate(self.environment, request.seed, request.depth)

    def close(self) -> None:
        if self.environment is not None:
            self.environment.close()
        self.environment = None
