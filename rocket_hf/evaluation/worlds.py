"""Environments in worker processes, which follow orders: start an episode, execute actions.

Pictures are rendered where a policy is to look, at the end of what it has ordered; for a video at every step.
"""

import multiprocessing
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from ..sentences import MENDABLE
from ..sims.contract import Environment, Observation
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


class Worlds:
    """Numbered worlds, spread over worker processes, or in this one where `workers` is 0."""

    def __init__(self, make: MakeEnvironment, workers: int, videos: Path | None = None):
        if videos is not None:
            videos.mkdir(parents=True, exist_ok=True)
        self.here: dict[int, World] = {}
        self.make, self.videos = make, videos
        context = multiprocessing.get_context("spawn")  # OpenGL does not survive a fork
        self.links: list[Connection] = []
        self.processes = []
        for _ in range(workers):
            link, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, make, videos), daemon=True)
            process.start()
            theirs.close()
            self.links.append(link)
            self.processes.append(process)

    def run(self, orders: Mapping[int, Order]) -> dict[int, Moment]:
        """Follows one order in each of some worlds, all workers at a time; the moments by world, in order."""
        if not self.links:
            return follow(self.here, orders, self.make, self.videos)
        workers = len(self.links)
        shares: list[dict[int, Order]] = [{} for _ in self.links]
        for world, order in orders.items():
            shares[world % workers][world] = order
        busy = [number for number, share in enumerate(shares) if share]
        for number in busy:
            self.send(number, shares[number])
        moments: dict[int, Moment] = {}
        for number in busy:
            moments |= self.receive(number)
        return {world: moments[world] for world in sorted(moments)}

    def send(self, number: int, share: dict[int, Order]) -> None:
        try:
            self.links[number].send(share)
        except OSError:
            raise self.lost(number) from None

    def receive(self, number: int) -> dict[int, Moment]:
        try:
            answer = self.links[number].recv()
        except (EOFError, OSError):
            raise self.lost(number) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def lost(self, number: int) -> ValueError:
        self.processes[number].join(timeout=5)
        code = self.processes[number].exitcode
        return ValueError(
            f"a worker process of the simulator ended with exit code {code}: "
            "if memory ran out, run fewer environments at a time (--parallel)"
        )

    def close(self) -> None:
        for world in self.here.values():
            world.close()
        for link in self.links:
            link.close()
        for process in self.processes:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def follow(
    worlds: dict[int, World], orders: Mapping[int, Order], make: MakeEnvironment, videos: Path | None
) -> dict[int, Moment]:
    moments = {}
    for number, order in orders.items():
        if number not in worlds:
            worlds[number] = World(make, videos)
        moments[number] = worlds[number].follow(order)
    return moments


def serve(link: Connection, make: MakeEnvironment, videos: Path | None) -> None:
    """A worker: answers orders until the other end closes. An interrupt is the other end's to act on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worlds: dict[int, World] = {}
    try:
        while True:
            try:
                orders = link.recv()
            except EOFError:
                return
            try:
                link.send(follow(worlds, orders, make, videos))
            except BrokenPipeError:
                return
            except MENDABLE as error:
                link.send(error)
    finally:
        for world in worlds.values():
            world.close()
