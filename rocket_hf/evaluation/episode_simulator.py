"""Simulator of single episodes: starts an episode, or executes the actions of a policy.

Rendering costs far more than physics, so images are rendered only where the policy needs an observation, which is after
its last action. Recording a video renders at every step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rocket_hf.sims.environment import Environment, Observation

from .videos import concatenate_cameras, write_video

MakeEnvironment = Callable[[str], Environment]  # argument: task; pickled for simulator processes


@dataclass(frozen=True)
class EpisodeStart:
    """Request to start an episode; a running episode is abandoned."""

    task: str
    seed: int


@dataclass(frozen=True)
class StepRequest:
    """Request to execute `actions`, (steps, action_dim), until the episode ends.

    The end of an episode is rendered only if its outcome (success or not) is among `observed_outcomes`.
    """

    actions: np.ndarray
    observed_outcomes: tuple[bool, ...] = ()


EpisodeRequest = EpisodeStart | StepRequest


@dataclass(frozen=True)
class RobotInterface:
    """Observations and actions of an environment, to be checked against those of a policy."""

    instruction: str
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    max_steps: int


@dataclass(frozen=True)
class EpisodeReply:
    """State of an episode after a request."""

    robot: RobotInterface
    steps: int
    success: bool
    has_ended: bool
    observation: Observation | None  # None if the episode has ended and its end is not rendered


class EpisodeSimulator:
    """Simulator of one episode at a time. Its environment is kept as long as the task stays the same."""

    def __init__(self, make_environment: MakeEnvironment, videos: Path | None = None):
        self.make_environment, self.videos = make_environment, videos
        self.environment: Environment | None = None
        self.frames: list[np.ndarray] = []
        self.seed, self.steps = 0, 0

    def handle(self, request: EpisodeRequest) -> EpisodeReply:
        return self.start(request) if isinstance(request, EpisodeStart) else self.step(request)

    def start(self, start: EpisodeStart) -> EpisodeReply:
        if self.environment is None or self.environment.task != start.task:
            self.close()
            self.environment = self.make_environment(start.task)
        self.environment.reset(start.seed)
        self.seed, self.steps, self.frames = start.seed, 0, []
        return self.reply(False, ())

    def step(self, request: StepRequest) -> EpisodeReply:
        environment = self.environment
        assert environment is not None, "an episode must be started before its first step"
        success = False
        for action in request.actions:
            success = environment.step(action)
            self.steps += 1
            if self.videos is not None:
                self.frames.append(concatenate_cameras(environment.observe()))
            if success or self.steps >= environment.max_steps:
                break
        reply = self.reply(success, request.observed_outcomes)
        if reply.has_ended and self.videos is not None:
            outcome = "success" if success else "failure"
            path = self.videos / f"{environment.task.replace('/', '-')}-{self.seed}-{outcome}.mp4"
            write_video(path, self.frames, environment.fps)
        return reply

    def reply(self, success: bool, observed_outcomes: tuple[bool, ...]) -> EpisodeReply:
        environment = self.environment
        assert environment is not None
        robot = RobotInterface(
            environment.instruction,
            environment.image_names,
            tuple(environment.state_names),
            tuple(environment.action_names),
            environment.max_steps,
        )
        has_ended = success or self.steps >= environment.max_steps
        observation = environment.observe() if not has_ended or success in observed_outcomes else None
        return EpisodeReply(robot, self.steps, success, has_ended, observation)

    def close(self) -> None:
        if self.environment is not None:
            self.environment.close()
            self.environment = None
