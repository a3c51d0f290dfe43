"""One demonstration: an episode that the scripted expert solves, with all that is recorded of it.

The expert is tried without pictures first, which is a hundred times faster; a start that it solves is played again and
drawn. The same seed gives the same start, so what is drawn is what was solved.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rocket_hf.errors import UserError

from .environment import Environment
from .suites import make_environment

ATTEMPTS = 50
NEXT_SEED = 1_000_000  # from a start that the expert fails to the next that is tried


@dataclass(frozen=True)
class Job:
    """What a worker needs to know: one episode to record."""

    suite: str
    task: str
    seed: int
    image_size: int
    depth: bool


@dataclass(frozen=True)
class Demonstration:
    instruction: str
    seed: int  # of the start that was solved
    dropped: int  # starts before it that the expert failed
    frames: list[dict[str, Any]]


def demonstrate(environment: Environment, first_seed: int, depth: bool) -> Demonstration:
    """From `first_seed`, or, where the expert fails, from the next of its own series of seeds."""
    for attempt in range(ATTEMPTS):
        seed = first_seed + attempt * NEXT_SEED
        actions = solve(environment, seed)
        if actions:
            return Demonstration(environment.instruction, seed, attempt, replay(environment, seed, actions, depth))
    raise UserError(
        f"the expert of {environment.task} failed {ATTEMPTS} starts within {environment.max_steps} steps each: "
        "leave the task out"
    )


def solve(environment: Environment, seed: int) -> list[np.ndarray]:
    """The expert's actions until the task is solved; none where it is not."""
    environment.reset(seed)
    actions = []
    for _ in range(environment.max_steps):
        actions.append(environment.expert_action())
        if environment.step(actions[-1]):
            return actions
    return []


def replay(environment: Environment, seed: int, actions: list[np.ndarray], depth: bool) -> list[dict[str, Any]]:
    """What is seen before each action, and whether the action solves the task."""
    environment.reset(seed)
    frames = []
    for action in actions:
        frame = seen(environment, depth)
        solved = environment.step(action)
        frames.append(frame | {"action": action, "next.success": np.array([solved]), "seed": np.array([seed])})
    assert solved, f"{environment.task} from seed {seed} did not go as before"
    return frames


def seen(environment: Environment, depth: bool) -> dict[str, Any]:
    """By the columns of a dataset."""
    observation = environment.observe()
    frame = {f"observation.images.{camera}": picture for camera, picture in observation.images.items()}
    frame["observation.state"] = observation.state
    for camera, view in environment.depth_views().items() if depth else ():
        frame[f"observation.images.{camera}_depth"] = view.depth[..., None]
        frame[f"camera.{camera}.intrinsics"] = view.intrinsics.reshape(-1)
        frame[f"camera.{camera}.pose"] = view.pose.reshape(-1)
    return frame


class ExpertWorker:
    """Keeps the environment of the last task, because making one takes longer than an episode."""

    def __init__(self) -> None:
        self.environment: Environment | None = None

    def handle(self, job: Job) -> Demonstration:
        if self.environment is None or self.environment.task != job.task:
            self.close()
            self.environment = make_environment(job.suite, job.task, job.image_size)
        return demonstrate(self.environment, job.seed, job.depth)

    def close(self) -> None:
        if self.environment is not None:
            self.environment.close()
        self.environment = None
