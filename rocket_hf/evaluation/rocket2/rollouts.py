"""Rollouts of a ROCKET-2 player: many episodes in parallel, one batch of observations for all of them.

Results do not depend on the number of parallel episodes and worker processes, except for rounding in batches of other
sizes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from rocket_hf.modeling.rocket2_auxiliary import auxiliary_targets
from rocket_hf.sims.process_pool import SimulatorPool
from rocket_hf.sims.vizdoom.maps import make_room

from .episode import Rocket2Episode, VisibilityRecord
from .journal import Rocket2Journal
from .players import Player, PlayerInput, PlayerOutput
from .simulator import GoalView, Rocket2Reply, Rocket2Request, Rocket2Start, Rocket2StartRequest, Rocket2StepRequest


@dataclass(frozen=True)
class EpisodeFrame:
    """One step of an episode for videos and figures, with the goal view that was shown last."""

    reply: Rocket2Reply
    goal: GoalView
    output: PlayerOutput | None  # None at the end of the episode


@dataclass(frozen=True)
class PlayerRollouts:
    """All episodes of one player with one goal refresh interval, in the order of their starts."""

    episodes: tuple[Rocket2Episode, ...]
    player_seconds: float
    total_seconds: float  # player and simulators
    resumed_steps: int = 0  # steps of the episodes that an interrupted evaluation had finished, without their time

    @property
    def steps_per_second(self) -> float:
        return (sum(episode.steps for episode in self.episodes) - self.resumed_steps) / self.player_seconds


OnEpisodeEnd = Callable[[Rocket2Episode, Sequence[EpisodeFrame]], None]


@dataclass
class RunningEpisode:
    start: Rocket2Start
    frames: list[EpisodeFrame] = field(default_factory=list)

    def add(self, reply: Rocket2Reply, output: PlayerOutput | None) -> None:
        goal = reply.goal if reply.goal is not None else self.frames[-1].goal
        self.frames.append(EpisodeFrame(reply, goal, output))

    def result(self) -> Rocket2Episode:
        last = self.frames[-1].reply
        kind = make_room(self.start.seed).objects[self.start.target].kind
        records = (visibility_record(each.reply, each.output) for each in self.frames if each.output is not None)
        return Rocket2Episode(self.start, kind, last.event, last.steps, tuple(records))


def run_player(
    player: Player,
    pool: SimulatorPool[Rocket2Request, Rocket2Reply],
    starts: Sequence[Rocket2Start],
    *,
    refresh: int,
    max_steps: int,
    parallel: int = 8,
    on_episode_end: OnEpisodeEnd | None = None,
    journal: Rocket2Journal | None = None,
    name: str = "episodes",
) -> PlayerRollouts:
    """Run one episode from each start. The goal is shown again after every `refresh` steps.

    `player` must have at least `parallel` slots. Episodes in the `journal` are not repeated, unless `on_episode_end`
    needs their images. `name` labels the progress bar.
    """
    resumed = journal.resumable(on_episode_end is not None) if journal is not None else {}
    running: dict[int, RunningEpisode] = {}
    requests: dict[int, Rocket2Request] = {}
    results = {start: resumed[start] for start in starts if start in resumed}
    resumed_steps = sum(episode.steps for episode in results.values())
    waiting = [start for start in reversed(starts) if start not in results]

    def start_next(slot: int) -> None:
        running[slot] = RunningEpisode(waiting.pop())
        requests[slot] = Rocket2StartRequest(running[slot].start, refresh, max_steps)

    for slot in range(min(parallel, len(waiting))):
        start_next(slot)
    begin, player_seconds = time.perf_counter(), 0.0
    with tqdm(total=len(starts), initial=len(results), desc=name, unit="", disable=None, leave=False) as bar:
        while requests:
            replies = pool.run(requests)
            player_begin = time.perf_counter()
            outputs = player.act(player_inputs(running, replies))
            player_seconds += time.perf_counter() - player_begin
            requests.clear()
            for slot, reply in replies.items():
                running[slot].add(reply, outputs.get(slot))
                if not reply.has_ended:
                    requests[slot] = Rocket2StepRequest(outputs[slot].choices)
                    continue
                finish(running.pop(slot), results, on_episode_end, journal)
                if waiting:
                    start_next(slot)
            bar.update(len(results) - bar.n)
    episodes = tuple(results[start] for start in starts)
    return PlayerRollouts(episodes, player_seconds, time.perf_counter() - begin, resumed_steps)


def player_inputs(running: Mapping[int, RunningEpisode], replies: Mapping[int, Rocket2Reply]) -> dict[int, PlayerInput]:
    """Return the inputs of the episodes that have not ended."""
    return {slot: PlayerInput(running[slot].start, reply) for slot, reply in replies.items() if not reply.has_ended}


def finish(
    episode: RunningEpisode,
    results: dict[Rocket2Start, Rocket2Episode],
    on_episode_end: OnEpisodeEnd | None,
    journal: Rocket2Journal | None,
) -> None:
    result = results[episode.start] = episode.result()
    if journal is not None:
        journal.add_episode(result)
    if on_episode_end is not None:
        on_episode_end(result, episode.frames)


def visibility_record(reply: Rocket2Reply, output: PlayerOutput) -> VisibilityRecord:
    truth = auxiliary_targets(torch.from_numpy(reply.mask))
    y, x = truth["point"].tolist()
    return VisibilityRecord(bool(truth["visibility"]), (y, x), output)
