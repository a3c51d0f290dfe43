"""Rollouts of a policy in simulated tasks: many environments in parallel, one batch of observations for all of them.

Episode k of every task starts from seed `first_seed` + k for every policy, so that two policies can be compared on the
same starts. The noise of a policy is seeded by task, seed and step. Results do not depend on the number of processes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from rocket_hf.files import create_folder
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.sims.process_pool import SimulatorPool
from rocket_hf.sims.suites import make_environment

from .episode_journal import EpisodeJournal
from .episode_simulator import EpisodeReply, EpisodeRequest, EpisodeSimulator, EpisodeStart, StepRequest
from .policy_runner import PolicyInput, PolicyRunner
from .protocol import PLAIN, EvaluationProtocol
from .rollout_strips import RolloutStrips

FIRST_SEED = 100_000  # Demonstrations are recorded from seed 0 on, so these starts are held out.
IMAGE_SIZE = 128


@dataclass(frozen=True)
class EpisodeResult:
    task: str
    seed: int
    success: bool
    steps: int
    max_steps: int  # after which the episode fails


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
    protocol: EvaluationProtocol = PLAIN,
    strips: RolloutStrips | None = None,
    journal: EpisodeJournal | None = None,
) -> list[EpisodeResult]:
    """Run `episodes` episodes of each task; return the results by task, then by seed.

    `parallel` environments are distributed over `workers` processes (0: this process). One video of each episode is
    written to the folder `videos`; `strips` keeps a few frames; episodes in the `journal` are not repeated. See
    `PolicyRunner` for `execute` and `cameras`.
    """
    runner = PolicyRunner(policy.to(device).eval(), processor, execute, cameras or {}, protocol)
    make = partial(make_environment, suite, image_size=image_size, max_steps=max_steps)
    starts = [EpisodeStart(task, first_seed + number) for number in range(episodes) for task in tasks]
    results = {}
    if journal is not None:
        resumed = journal.resumable(tasks, strips is not None)
        results = {start: EpisodeResult(**resumed[start]) for start in starts if start in resumed}
    remaining = [start for start in starts if start not in results]
    if videos is not None:
        create_folder(videos)
    with SimulatorPool(partial(EpisodeSimulator, make, videos), min(workers, len(remaining))) as pool:
        results |= run_episodes(runner, pool, remaining, parallel, strips, journal)
    return [results[EpisodeStart(task, first_seed + number)] for task in tasks for number in range(episodes)]


def run_episodes(
    runner: PolicyRunner,
    pool: SimulatorPool[EpisodeRequest, EpisodeReply],
    starts: Sequence[EpisodeStart],
    parallel: int,
    strips: RolloutStrips | None = None,
    journal: EpisodeJournal | None = None,
) -> dict[EpisodeStart, EpisodeResult]:
    """Step all environments, then run the policy on one batch of the unfinished ones; repeat until all episodes end."""
    strips = strips or RolloutStrips(())
    waiting = list(starts)
    running = {simulator: take_start(waiting) for simulator in range(min(parallel, len(starts)))}
    requests: dict[int, EpisodeRequest] = dict(running)
    results: dict[EpisodeStart, EpisodeResult] = {}
    with tqdm(total=len(starts), desc="episodes", unit="", disable=None, leave=False) as bar:
        while requests:
            replies = pool.run(requests)
            for simulator, reply in replies.items():
                runner.require_fit(reply.robot)
                strips.add(running[simulator], reply, runner)
            ended = {simulator: running.pop(simulator) for simulator, reply in replies.items() if reply.has_ended}
            results |= {start: result_of(start, replies[simulator]) for simulator, start in ended.items()}
            if journal is not None:
                for start in ended.values():
                    journal.add(asdict(results[start]))
            requests = dict(next_steps(runner, running, replies, strips))
            for simulator, start in ended.items():
                if waiting:
                    requests[simulator] = running[simulator] = take_start(waiting, start.task)
            update_bar(bar, results)
    return results


def take_start(waiting: list[EpisodeStart], task: str | None = None) -> EpisodeStart:
    """Remove and return the next start, of the same task if possible: building another environment takes a second."""
    same_task = [number for number, start in enumerate(waiting) if start.task == task]
    return waiting.pop(same_task[0] if same_task else 0)


def next_steps(
    runner: PolicyRunner,
    running: dict[int, EpisodeStart],
    replies: dict[int, EpisodeReply],
    strips: RolloutStrips,
) -> dict[int, StepRequest]:
    """Run the policy on all running episodes; return the step requests by simulator."""
    if not running:
        return {}
    simulators = sorted(running)
    chunks = runner([policy_input(running[simulator], replies[simulator]) for simulator in simulators])
    return {
        simulator: StepRequest(actions, strips.candidate_outcomes(running[simulator]))
        for simulator, actions in zip(simulators, chunks, strict=True)
    }


def policy_input(start: EpisodeStart, reply: EpisodeReply) -> PolicyInput:
    assert reply.observation is not None, "a running episode has an observation"
    return PolicyInput(start.task, start.seed, reply.steps, reply.robot.instruction, reply.observation)


def result_of(start: EpisodeStart, reply: EpisodeReply) -> EpisodeResult:
    return EpisodeResult(start.task, start.seed, reply.success, reply.steps, reply.robot.max_steps)


def update_bar(bar: tqdm, results: dict[EpisodeStart, EpisodeResult]) -> None:
    bar.n = len(results)
    bar.set_postfix_str(f"{sum(result.success for result in results.values())} succeeded")
