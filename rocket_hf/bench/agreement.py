"""What measuring the agreement of gradients costs a run: the seconds of one measurement against those of a step.

The policy, the teacher and the step are those of the benchmark `step`, with all its layer pairs; the measurement is of
a whole batch and of the default weights, the first aligned block's.
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
from rocket_hf.training.vla.gradient_agreement import gradient_agreement
from rocket_hf.training.vla.targets import CachedTargets
from rocket_hf.training.vla.task import VLATrainingTask

EVERY, ROUNDS = 100, 3
WAYS = ("cached", "live")


def agreement_job(stage: step.Stage, learner: TrainState):
    assert isinstance(learner.system, VLATrainingTask)
    numbers, preparation = count(), learner.system.preparation
    source = preparation.targets
    fake = learner.policy.config.fake_batch(stage.setting.batch_size, step.PROMPT_LENGTH)
    numeric = {key: value for key, value in fake.items() if key != "images"}

    def job() -> None:
        chosen = [next(numbers) % step.FRAMES for _ in range(stage.setting.batch_size)]
        raw: Any = {**numeric, "images": stage.frames.pictures(chosen)}
        if isinstance(source, CachedTargets):
            raw["features"] = default_collate([source.cache.read(index) for index in chosen])
        gradient_agreement(learner, preparation, raw)
        learner.times.take()
        if stage.device.type == "cuda":
            torch.cuda.synchronize()

    return job


def measure(policy: str = "25m") -> dict[str, Any]:
    torch.set_num_threads(step.THREADS)
    setting = step.SETTINGS[policy]
    pairs, figures = len(setting.student_layers), {}
    with tempfile.TemporaryDirectory() as folder:
        stage = step.Stage(setting, Path(folder) / "cache")
        for way in WAYS:
            learner = stage.learner(way, pairs)
            jobs = {"step": stage.job_of(learner), "agreement": agreement_job(stage, learner)}
            seconds = interleaved(jobs, ROUNDS)
            ratio = median_ratio(seconds["agreement"], seconds["step"])
            figures[way] = {
                "step": round(statistics.median(seconds["step"]), 4),
                "agreement": round(statistics.median(seconds["agreement"]), 4),
                "steps": round(ratio, 3),
                "share": round(ratio / EVERY, 5),
            }
    return {"policy": policy, "pairs": pairs, "every": EVERY} | figures


def report(figures: dict[str, Any]) -> str:
    rows = [
        f"agreement of {figures['pairs']} layer pairs and the action, {figures['policy']}; CPU seconds, medians",
        "",
        f"{'':10}{'a step':>10}{'measuring':>12}{'in steps':>10}{f'every {EVERY} steps':>18}",
    ]
    for way in WAYS:
        row = figures[way]
        rows.append(f"{way:10}{row['step']:10.3f}{row['agreement']:12.3f}{row['steps']:10.2f}{row['share']:18.2%}")
    return "\n".join(rows)
