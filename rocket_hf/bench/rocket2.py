"""Benchmark of ROCKET-2's memory: a step with cached memory relative to recomputing the whole window at each step.

Both compute the same step after 128 steps, with equal results. The policy is small, but its window of 128 steps with 11
tokens each is the published one. The duration of early and late steps of a long episode is compared as well.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from rocket_hf.bench.measure import interleaved, median_ratio
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_interface import Goal, Rocket2State

SMALL = Rocket2Config(
    image_size=(64, 80), rgb_depth=4, rgb_width=192, rgb_heads=3, rgb_mlp_width=768, mask_depth=2, mask_width=64,
    mask_heads=1, mask_mlp_width=256, width=192, heads=4, spatial_layers=2, temporal_layers=2,
    action_space="factored", action_factors={"move": 5, "turn": 11, "act": 3},
)  # fmt: skip
ROUNDS, EARLY, LATE = 7, 10, 1000
REPEATS = 9  # repetitions of a step that are timed together
THREADS = 1  # synchronizing threads costs more than it saves at these sizes


class Rocket2Benchmark:
    """Policy with a long episode of random images and one goal."""

    def __init__(self, config: Rocket2Config):
        torch.manual_seed(0)
        self.policy = Rocket2ForActionPrediction(config).eval()
        self.batch = config.fake_batch(batch_size=1, steps=config.window_steps, goals=1)
        first = {name: self.batch[name][:, 0] for name in ("goal_images", "goal_masks", "goal_interactions")}
        self.goal = Goal(*first.values())

    def step(self, state: Rocket2State, number: int) -> Rocket2State:
        window = self.policy.config.window_steps
        images, goal = self.batch["images"][:, number % window], self.goal if number == 0 else None
        action, state = self.policy.step(images, goal, state, temperature=0)
        if number + 1 < window:  # `recompute` reads the first window of the episode
            self.batch["previous_actions"][:, number + 1] = action
        return state

    def state_after(self, steps: int) -> Rocket2State:
        """Return the state after the first `steps` steps of the episode."""
        state = self.policy.initial_state()
        self.batch["previous_actions"][:, 0] = state.previous_actions
        for number in tqdm(range(steps), desc="steps", leave=False, disable=None):
            state = self.step(state, number)
        return state

    def recompute(self) -> torch.Tensor:
        """Compute the most probable action at the end of the window from all of its steps."""
        with torch.no_grad():
            inputs = {key: value for key, value in self.batch.items() if key not in ("actions", "visibility")}
            logits = self.policy(**inputs).logits
        return torch.stack([scores[:, -1].argmax(dim=-1) for scores in logits.values()], dim=-1)


def measure_speedup(benchmark: Rocket2Benchmark) -> dict[str, Any]:
    last = benchmark.policy.config.window_steps - 1
    state = benchmark.state_after(last)
    assert torch.equal(benchmark.step(state, last).previous_actions, benchmark.recompute())
    jobs = {"memory": repeated_step(benchmark, state, last), "recompute": benchmark.recompute}
    seconds = interleaved(jobs, ROUNDS)
    seconds["memory"] = [time / REPEATS for time in seconds["memory"]]
    return {
        "memory_speedup": round(median_ratio(seconds["recompute"], seconds["memory"]), 1),
        "steps_per_second": {mode: round(1 / statistics.median(times), 2) for mode, times in seconds.items()},
    }


def repeated_step(benchmark: Rocket2Benchmark, state: Rocket2State, number: int) -> Callable[[], None]:
    """Return a job that repeats a step, because a single step is too short to be timed."""

    def steps() -> None:
        for _ in range(REPEATS):
            benchmark.step(state, number)

    return steps


def measure_growth(benchmark: Rocket2Benchmark) -> dict[str, Any]:
    """Compare the duration and the size of the state between an early and a late step."""
    states = {number: benchmark.state_after(number - 1) for number in (EARLY, LATE)}
    jobs = {f"step_{number}": repeated_step(benchmark, state, number - 1) for number, state in states.items()}
    seconds = interleaved(jobs, ROUNDS)
    early, late = seconds.values()
    return {
        f"step_{LATE}_to_step_{EARLY}": round(median_ratio(late, early), 3),
        "milliseconds": {name: round(1000 * statistics.median(times) / REPEATS, 2) for name, times in seconds.items()},
        "state_mib": {f"step_{number}": mebibytes(state_bytes(state)) for number, state in states.items()},
    }


def state_bytes(state: Rocket2State) -> int:
    return sum(tensor.nbytes for tensor in (*state.memory, state.goals, state.previous_actions))


def mebibytes(size: int) -> float:
    return round(size / 2**20, 2)


def measure() -> dict[str, Any]:
    torch.set_num_threads(THREADS)
    benchmark = Rocket2Benchmark(SMALL)
    return measure_speedup(benchmark) | measure_growth(benchmark)


def report(figures: dict[str, Any]) -> str:
    rates, times, sizes = figures["steps_per_second"], figures["milliseconds"], figures["state_mib"]
    return "\n".join([
        f"ROCKET-2 of width {SMALL.width}, window of {SMALL.window_steps} steps x {SMALL.step_tokens} tokens, "
        f"{THREADS} CPU thread",
        "",
        f"{'':30}{'steps per second':>18}",
        f"{'cached memory':30}{rates['memory']:18.2f}",
        f"{'window recomputed':30}{rates['recompute']:18.2f}",
        f"{'':30}{figures['memory_speedup']:17.1f}x",
        "",
        f"{'':30}{'milliseconds':>18}{'state in MiB':>16}",
        *(f"{name.replace('_', ' '):30}{times[name]:18.2f}{sizes[name]:16.2f}" for name in times),
    ])  # fmt: skip
