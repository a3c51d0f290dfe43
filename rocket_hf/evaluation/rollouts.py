"""Episodes of a policy in simulated tasks: many environments at a time, one batch of observations for all of them.

Episode k of every task starts from `first_seed` + k, for every policy the same, so that two policies are compared start
by start. A policy's own noise is drawn by task, seed and step. Numbers are the same for any number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.sims.suites import make_environment

from .actor import Actor, View
from .environments import Act, Moment, Order, Start, World
from .protocol import PLAIN, Protocol
from .workers import Worlds

FIRST_SEED = 100_000  # demonstrations are recorded from seed 0 on: these starts are held out
IMAGE_SIZE = 128


@dataclass(frozen=True)
class Episode:
    task: str
    seed: int
    success: bool
    steps: int
    max_steps: int  # after which it would have failed


def rollout(
    policy: RocketForActionPrediction,
    processor: RocketProcessor,
    suite: str,
    tasks: Sequence[str],
    episodes: int,
    *,
    first_seed: int = FIRST_SEED,
    image_size: int = IMAGE_SIZE,
    execute: int | None = None,
    max_steps: int | None = None,
    workers: int = 2,
    parallel: int = 8,
    device: str | torch.device = "cpu",
    videos: Path | None = None,
    cameras: dict[str, str] | None = None,
    protocol: Protocol = PLAIN,
) -> list[Episode]:
    """`episodes` of each task, task by task in the order of their seeds. `parallel` environments lie in `workers`
    processes; `videos` is a folder for one video an episode. See `Actor` for `execute` and `cameras`."""
    actor = Actor(policy.to(device).eval(), processor, execute, cameras or {}, protocol)
    make = partial(make_environment, suite, image_size=image_size, max_steps=max_steps)
    starts = [Start(task, first_seed + number) for number in range(episodes) for task in tasks]
    if videos is not None:
        videos.mkdir(parents=True, exist_ok=True)
    with Worlds(partial(World, make, videos), min(workers, len(starts))) as worlds:
        finished = run_episodes(actor, worlds, starts, parallel)
    return [finished[Start(task, first_seed + number)] for task in tasks for number in range(episodes)]


def run_episodes(
    actor: Actor, worlds: Worlds[Order, Moment], starts: Sequence[Start], parallel: int
) -> dict[Start, Episode]:
    """In rounds: every world follows its order, then the policy looks at all that go on."""
    waiting = list(starts)
    current = {world: take(waiting) for world in range(min(parallel, len(starts)))}
    orders: dict[int, Order] = dict(current)
    finished: dict[Start, Episode] = {}
    with tqdm(total=len(starts), desc="episodes", unit="", disable=None, leave=False) as bar:
        while orders:
            moments = worlds.run(orders)
            for moment in moments.values():
                actor.require_fit(moment.robot)
            ended = {world: current.pop(world) for world, moment in moments.items() if moment.ended}
            finished |= {start: episode_of(start, moments[world]) for world, start in ended.items()}
            orders = dict(act(actor, current, moments))
            for world, start in ended.items():
                if waiting:
                    orders[world] = current[world] = take(waiting, start.task)
            show(bar, finished)
    return finished


def take(waiting: list[Start], task: str | None = None) -> Start:
    """The next start, of the same task if there is one: another task's environment takes a second to make."""
    same = [number for number, start in enumerate(waiting) if start.task == task]
    return waiting.pop(same[0] if same else 0)


def act(actor: Actor, current: dict[int, Start], moments: dict[int, Moment]) -> dict[int, Act]:
    worlds = sorted(current)
    if not worlds:
        return {}
    views = [view_of(current[world], moments[world]) for world in worlds]
    return {world: Act(actions) for world, actions in zip(worlds, actor(views), strict=True)}


def view_of(start: Start, moment: Moment) -> View:
    assert moment.observation is not None, "an episode that goes on shows something"
    return View(start.task, start.seed, moment.steps, moment.robot.instruction, moment.observation)


def episode_of(start: Start, moment: Moment) -> Episode:
    return Episode(start.task, start.seed, moment.success, moment.steps, moment.robot.max_steps)


def show(bar: tqdm, finished: dict[Start, Episode]) -> None:
    bar.n = len(finished)
    bar.set_postfix_str(f"{sum(episode.success for episode in finished.values())} succeeded")
