"""Benchmark of measuring gradient agreement during training: its duration relative to that of a training step.

Policy, teacher and step are those of the benchmark `step` with all layer pairs. A measurement uses a whole batch and
the default weights, those of the first aligned block.
"""

import statistics
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

from rocket_hf.bench import step
from rocket_hf.bench.measure import interleaved, median_ratio
from rocket_hf.training.run import TrainState
from rocket_hf.training.vla.targets import CachedTargets
from rocket_hf.training.vla.task import VLATrainingTask

MEASUREMENT_INTERVAL = 100  # training steps between two measurements
ROUNDS = 3
MODES = ("cached", "live")


def agreement_job(benchmark: step.StepBenchmark, state: TrainState):
    assert isinstance(state.task, VLATrainingTask)
    numbers, agreement = count(), state.task.agreement
    source = state.task.batch_inputs.target_source
    fake = state.policy.config.fake_batch(benchmark.setting.batch_size, step.PROMPT_LENGTH)
    numeric = {key: value for key, value in fake.items() if key != "images"}

    def job() -> None:
        chosen = [next(numbers) % step.FRAMES for _ in range(benchmark.setting.batch_size)]
        raw: Any = {**numeric, "images": benchmark.frames.read_images(chosen)}
        if isinstance(source, CachedTargets):
            raw["features"] = default_collate([source.cache.read(index) for index in chosen])
        agreement.measure(raw)
        state.timer.pop_intervals()
        if benchmark.device.type == "cuda":
            torch.cuda.synchronize()

    return job


def measure(policy: str = "25m") -> dict[str, Any]:
    torch.set_num_threads(step.THREADS)
    setting = step.STEP_SETTINGS[policy]
    pairs, figures = len(setting.student_layers), {}
    with tempfile.TemporaryDirectory() as folder:
        benchmark = step.StepBenchmark(setting, Path(folder) / "cache")
        for mode in MODES:
            state = benchmark.create_state(mode, pairs)
            jobs = {"step": benchmark.create_step_job(state), "agreement": agreement_job(benchmark, state)}
            seconds = interleaved(jobs, ROUNDS)
            ratio = median_ratio(seconds["agreement"], seconds["step"])
            figures[mode] = {
                "step": round(statistics.median(seconds["step"]), 4),
                "agreement": round(statistics.median(seconds["agreement"]), 4),
                "steps": round(ratio, 3),
                "share": round(ratio / MEASUREMENT_INTERVAL, 5),
            }
    return {"policy": policy, "pairs": pairs, "every": MEASUREMENT_INTERVAL} | figures


def report(figures: dict[str, Any]) -> str:
    rows = [
        f"gradient agreement of {figures['pairs']} layer pairs and the action loss, {figures['policy']} policy; CPU "
        "seconds, medians",
        "",
        f"{'':10}{'step':>10}{'measurement':>13}{'in steps':>10}{f'every {MEASUREMENT_INTERVAL} steps':>18}",
    ]
    for mode in MODES:
        row = figures[mode]
        rows.append(f"{mode:10}{row['step']:10.3f}{row['agreement']:13.3f}{row['steps']:10.2f}{row['share']:18.2%}")
    return "\n".join(rows)
