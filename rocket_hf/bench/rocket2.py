"""What ROCKET-2's memory saves: a step that carries it, against the whole window read again at each step.

Both have seen 128 steps, give the scores of the same step and agree. The policy is small, its window of 128 steps and
11 tokens a step is the published one. Then a thousand steps are taken, and the first are compared with the last.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from rocket_hf.bench.measure import interleaved, median_ratio
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_interface import Goal, PolicyState

SMALL = Rocket2Config(
    image_size=(64, 80), rgb_depth=4, rgb_width=192, rgb_heads=3, rgb_mlp_width=768, mask_depth=2, mask_width=64,
    mask_heads=1, mask_mlp_width=256, width=192, heads=4, spatial_layers=2, temporal_layers=2,
    action_space="factored", action_factors={"move": 5, "turn": 11, "act": 3},
)  # fmt: skip
ROUNDS, EARLY, LATE = 7, 10, 1000
AROUND = 9  # steps whose time is taken together
THREADS = 1  # more would wait for each other at these sizes


class Episode:
    """One policy and one long episode of noise with one goal."""

    def __init__(self, config: Rocket2Config):
        torch.manual_seed(0)
        self.policy = Rocket2ForActionPrediction(config).eval()
        self.batch = config.fake_batch(batch_size=1, steps=config.window_steps, goals=1)
        first = {name: self.batch[name][:, 0] for name in ("goal_images", "goal_masks", "goal_interactions")}
        self.goal = Goal(*first.values())

    def step(self, state: PolicyState, number: int) -> PolicyState:
        window = self.policy.config.window_steps
        images, goal = self.batch["images"][:, number % window], self.goal if number == 0 else None
        action, state = self.policy.step(images, goal, state, temperature=0)
        if number + 1 < window:  # what is read again is the beginning of the episode
            self.batch["previous_actions"][:, number + 1] = action
        return state

    def after(self, steps: int) -> PolicyState:
        """So many steps from the beginning."""
        state = self.policy.initial_state()
        self.batch["previous_actions"][:, 0] = state.previous_actions
        for number in tqdm(range(steps), desc="steps", leave=False, disable=None):
            state = self.step(state, number)
        return state

    def recompute(self) -> torch.Tensor:
        """The most likely action at the end of the window."""
        with torch.no_grad():
            read = {key: value for key, value in self.batch.items() if key not in ("actions", "visibility")}
            logits = self.policy(**read).logits
        return torch.stack([scores[:, -1].argmax(dim=-1) for scores in logits.values()], dim=-1)


def speedup(episode: Episode) -> dict[str, Any]:
    last = episode.policy.config.window_steps - 1
    state = episode.after(last)
    assert torch.equal(episode.step(state, last).previous_actions, episode.recompute())
    seconds = interleaved({"memory": steps_from(episode, state, last), "recompute": episode.recompute}, ROUNDS)
    seconds["memory"] = [taken / AROUND for taken in seconds["memory"]]
    return {
        "memory_speedup": round(median_ratio(seconds["recompute"], seconds["memory"]), 1),
        "steps_per_second": {way: round(1 / statistics.median(taken), 2) for way, taken in seconds.items()},
    }


def steps_from(episode: Episode, state: PolicyState, number: int) -> Callable[[], None]:
    """The same step, several times: one alone is too short to be timed."""

    def steps() -> None:
        for _ in range(AROUND):
            episode.step(state, number)

    return steps


def growth(episode: Episode) -> dict[str, Any]:
    """The time of the tenth step and of the thousandth, in turns, and the bytes that are carried on."""
    states = {number: episode.after(number - 1) for number in (EARLY, LATE)}
    jobs = {f"step_{number}": steps_from(episode, state, number - 1) for number, state in states.items()}
    seconds = interleaved(jobs, ROUNDS)
    early, late = seconds.values()
    return {
        f"step_{LATE}_to_step_{EARLY}": round(median_ratio(late, early), 3),
        "milliseconds": {name: round(1000 * statistics.median(taken) / AROUND, 2) for name, taken in seconds.items()},
        "state_mib": {f"step_{number}": mebibytes(bytes_of(state)) for number, state in states.items()},
    }


def bytes_of(state: PolicyState) -> int:
    return sum(tensor.nbytes for tensor in (*state.memory, state.goals, state.previous_actions))


def mebibytes(size: int) -> float:
    return round(size / 2**20, 2)


def measure() -> dict[str, Any]:
    torch.set_num_threads(THREADS)
    episode = Episode(SMALL)
    return speedup(episode) | growth(episode)


def report(figures: dict[str, Any]) -> str:
    rates, times, sizes = figures["steps_per_second"], figures["milliseconds"], figures["state_mib"]
    return "\n".join([
        f"ROCKET-2 of width {SMALL.width}, window of {SMALL.window_steps} steps x {SMALL.step_tokens} tokens, "
        f"{THREADS} CPU thread",
        "",
        f"{'':30}{'steps per second':>18}",
        f"{'with its memory':30}{rates['memory']:18.2f}",
        f"{'the window read again':30}{rates['recompute']:18.2f}",
        f"{'':30}{figures['memory_speedup']:17.1f}x",
        "",
        f"{'':30}{'milliseconds':>18}{'state in MiB':>16}",
        *(f"{name.replace('_', ' '):30}{times[name]:18.2f}{sizes[name]:16.2f}" for name in times),
    ])  # fmt: skip
