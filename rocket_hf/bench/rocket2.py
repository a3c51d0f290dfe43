"""What ROCKET-2's memory saves: a step that carries it, against the whole window read again at each step.

Both have seen 128 steps, give the scores of the same step and agree. The policy is small, its window of 128 steps and
11 tokens a step is the published one. Then a thousand steps are taken, and the first are compared with the last.
"""

import statistics
import time
from typing import Any

import torch
from tqdm import tqdm

from rocket_hf.bench.measure import interleaved, median_ratio
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_contract import Goal, PolicyState

SMALL = Rocket2Config(
    image_size=(64, 80), rgb_depth=4, rgb_width=192, rgb_heads=3, rgb_mlp_width=768, mask_depth=2, mask_width=64,
    mask_heads=1, mask_mlp_width=256, width=192, heads=4, spatial_layers=2, temporal_layers=2,
    action_space="factored", action_factors={"move": 5, "turn": 11, "act": 3},
)  # fmt: skip
ROUNDS, EARLY, LATE = 7, 10, 1000
AROUND = 9  # steps over which the time of a step is taken
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

    def start(self) -> PolicyState:
        state = self.policy.initial_state()
        self.batch["previous_actions"][:, 0] = state.previous_actions
        return state

    def recompute(self) -> torch.Tensor:
        """The most likely action at the end of the window."""
        with torch.no_grad():
            read = {key: value for key, value in self.batch.items() if key not in ("actions", "visibility")}
            logits = self.policy(**read).logits
        return torch.stack([scores[:, -1].argmax(dim=-1) for scores in logits.values()], dim=-1)


def speedup(episode: Episode) -> dict[str, Any]:
    last, state = episode.policy.config.window_steps - 1, episode.start()
    for number in range(last):
        state = episode.step(state, number)
    assert torch.equal(episode.step(state, last).previous_actions, episode.recompute())

    def steps() -> None:
        for _ in range(AROUND):
            episode.step(state, last)

    seconds = interleaved({"memory": steps, "recompute": episode.recompute}, ROUNDS)
    seconds["memory"] = [taken / AROUND for taken in seconds["memory"]]
    return {
        "memory_speedup": round(median_ratio(seconds["recompute"], seconds["memory"]), 1),
        "steps_per_second": {way: round(1 / statistics.median(taken), 2) for way, taken in seconds.items()},
    }


def growth(episode: Episode) -> dict[str, Any]:
    """The time of a step around the tenth and at the end of a thousand, and the bytes that are carried on."""
    state, seconds, sizes = episode.start(), [], []
    for number in tqdm(range(LATE), desc="steps", leave=False, disable=None):
        begin = time.process_time()
        state = episode.step(state, number)
        seconds.append(time.process_time() - begin)
        sizes.append(sum(tensor.nbytes for tensor in (*state.memory, state.goals, state.previous_actions)))
    early, late = (
        statistics.median(seconds[end - AROUND : end]) for end in (EARLY + AROUND // 2, LATE)
    )  # fmt: skip
    return {
        f"step_{LATE}_to_step_{EARLY}": round(late / early, 3),
        "milliseconds": {f"step_{EARLY}": round(1000 * early, 2), f"step_{LATE}": round(1000 * late, 2)},
        "state_mib": {f"step_{EARLY}": mebibytes(sizes[EARLY]), f"step_{LATE}": mebibytes(sizes[-1])},
    }


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
