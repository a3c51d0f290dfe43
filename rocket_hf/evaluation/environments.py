"""Environments that follow orders: start an episode, execute actions.

Pictures are rendered where a policy is to look, at the end of what it has ordered; for a video at every step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rocket_hf.sims.environment import Environment, Observation

from .videos import side_by_side, write_video

MakeEnvironment = Callable[[str], Environment]  # by task; pickled for the workers


@dataclass(frozen=True)
class Start:
    """A new episode, given up for whatever went on before."""

    task: str
    seed: int


@dataclass(frozen=True)
class Act:
    actions: np.ndarray  # (steps, action_dim), executed until the episode ends


Order = Start | Act


@dataclass(frozen=True)
class Robot:
    """What an environment shows and takes."""

    instruction: str
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    max_steps: int


@dataclass(frozen=True)
class Moment:
    """Where an episode is after an order."""

    robot: Robot
    steps: int
    success: bool
    observation: Observation | None  # None when the episode has ended

    @property
    def ended(self) -> bool:
        return self.observation is None


class World:
    """One episode at a time, in an environment that is kept while the task stays the same."""

    def __init__(self, make: MakeEnvironment, videos: Path | None = None):
        self.make, self.videos = make, videos
        self.environment: Environment | None = None
        self.frames: list[np.ndarray] = []
        self.seed, self.steps = 0, 0

    def follow(self, order: Order) -> Moment:
        return self.start(order) if isinstance(order, Start) else self.act(order.actions)

    def start(self, order: Start) -> Moment:
        if self.environment is None or self.environment.task != order.task:
            self.close()
            self.environment = self.make(order.task)
        self.environment.reset(order.seed)
        self.seed, self.steps, self.frames = order.seed, 0, []
        return self.moment(False)

    def act(self, actions: np.ndarray) -> Moment:
        assert self.environment is not None, "an episode is started before it goes on"
        success = False
        for action in actions:
            success = self.environment.step(action)
            self.steps += 1
            if self.videos is not None:
                self.frames.append(side_by_side(self.environment.observe()))
            if success or self.steps >= self.environment.max_steps:
                break
        return self.moment(success)

    def moment(self, success: bool) -> Moment:
        environment = self.environment
        assert environment is not None
        ended = success or self.steps >= environment.max_steps
        robot = Robot(
            environment.instruction,
            tuple(environment.cameras),
            tuple(environment.state_names),
            tuple(environment.action_names),
            environment.max_steps,
        )
        if ended and self.videos is not None:
            outcome = "success" if success else "failure"
            path = self.videos / f"{environment.task.replace('/', '-')}-{self.seed}-{outcome}.mp4"
            write_video(path, self.frames, environment.fps)
        return Moment(robot, self.steps, success, None if ended else environment.observe())

    def close(self) -> None:
        if self.environment is not None:
            self.environment.close()
            self.environment = None
