"""Numbers of an ablation: results of each variant over its seeds, and comparisons between variants.

Seeds that have not been evaluated yet are left out.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rocket_hf.evaluation.statistics import PairedComparison, wilson_interval
from rocket_hf.training.journal import read_journal

from .ablation import Ablation, phase_name
from .ablation_training import MEMORY
from .curves import Curve, curve_mean, final_mean, mean, mean_loss_curve, series

BASELINES = ("none", "shared")  # variants that every other variant is compared with
RolloutKey = tuple[int, str, int]  # training seed, task, seed of the episode


@dataclass
class TrainingRun:
    """Curves by step, step times and peak memory of one run, read from its journal."""

    seed: int
    action: Curve
    alignment: Curve  # mean over layer pairs
    between_pairs: Curve  # mean cosine of the gradients of two layer pairs
    conflicting: Curve  # share of negative cosines
    with_action: Curve  # mean cosine of the gradients of a layer pair and of the action loss
    seconds: list[float]  # duration of each step without the measurement of gradient agreement
    peak_memory: int  # bytes
    memory_kind: str  # "resident" or "on the GPU"


@dataclass
class Variant:
    """Training runs of all seeds of a recipe, and the outcome of each of its rollouts."""

    name: str
    runs: list[TrainingRun]
    success: dict[RolloutKey, bool]

    def count_successes(self, seed: int | None = None, task: str | None = None) -> tuple[int, int]:
        """Return the numbers of successes and of rollouts, in total or of one seed or task."""
        outcomes = [
            success
            for (rollout_seed, rollout_task, _), success in self.success.items()
            if seed in (None, rollout_seed) and task in (None, rollout_task)
        ]
        return sum(outcomes), len(outcomes)


def read_variants(ablation: Ablation) -> dict[str, Variant]:
    return {name: read_variant(ablation, name) for name in ablation.recipes}


def read_variant(ablation: Ablation, name: str) -> Variant:
    results = ablation.phases.results
    seeds = [seed for seed in ablation.seeds if phase_name("rollouts", name, seed) in results]
    success = {
        (seed, episode["task"], episode["seed"]): episode["success"]
        for seed in seeds
        for episode in results[phase_name("rollouts", name, seed)]["episodes"]
    }
    return Variant(name, [read_run(ablation.run_folder(name, seed), seed) for seed in seeds], success)


def read_run(run: Path, seed: int) -> TrainingRun:
    records = read_journal(run / "journal.jsonl")
    steps = [record for record in records if "loss" in record]
    on_gpu = [record["memory_mib"] for record in records if "memory_mib" in record]
    return TrainingRun(
        seed,
        action=mean_loss_curve(steps, "action/"),
        alignment=mean_loss_curve(steps, "alignment/"),
        between_pairs=series(steps, "agreement/pairs"),
        conflicting=series(steps, "agreement/conflicting"),
        with_action=series(steps, "agreement/action"),
        seconds=[step_seconds(record) for record in steps],
        peak_memory=round(max(on_gpu) * 2**20) if on_gpu else int((run / MEMORY).read_text()),
        memory_kind="on the GPU" if on_gpu else "resident",
    )


def step_seconds(record: dict[str, Any]) -> float:
    return sum(value for name, value in record.items() if name.startswith("seconds/") and name != "seconds/agreement")


def summarize_variants(variants: dict[str, Variant]) -> dict[str, Any]:
    """Return the results of each variant and its comparisons. Results that do not exist for a variant are None."""
    return {
        name: summarize_variant(variant) | {"against": compare_with_baselines(variants, name)}
        for name, variant in variants.items()
    }


def summarize_variant(variant: Variant) -> dict[str, Any]:
    successes, rollouts = variant.count_successes()
    runs = variant.runs
    aligned = [run for run in runs if run.alignment]
    measured = [run for run in runs if run.between_pairs]
    tasks = dict.fromkeys(task for _, task, _ in variant.success)
    return {
        "successes": successes,
        "rollouts": rollouts,
        "rate": successes / rollouts,
        "interval": list(wilson_interval(successes, rollouts)),
        "by_seed": {run.seed: variant.count_successes(seed=run.seed) for run in runs},
        "by_task": {task: variant.count_successes(task=task) for task in tasks},
        "action_loss": summarize_seeds([final_mean(run.action) for run in runs]),
        "alignment_loss": summarize_seeds([final_mean(run.alignment) for run in aligned]),
        "agreement_between_pairs": summarize_seeds([curve_mean(run.between_pairs) for run in measured]),
        "conflicting_pairs": summarize_seeds([curve_mean(run.conflicting) for run in runs if run.conflicting]),
        "agreement_with_action": summarize_seeds([curve_mean(run.with_action) for run in runs if run.with_action]),
        "seconds_per_step": median(second for run in runs for second in run.seconds),
        "peak_memory_bytes": max(run.peak_memory for run in runs),
        "memory": runs[0].memory_kind,
    }


def summarize_seeds(values: list[float]) -> dict[str, Any] | None:
    return {"mean": mean(values), "by_seed": values} if values else None


def compare_with_baselines(variants: dict[str, Variant], name: str) -> dict[str, dict[str, Any]]:
    """Compare a variant with each baseline on the rollouts that both have."""
    return {
        other: compare_success(variants[name], variants[other])
        for other in BASELINES
        if other in variants and other != name
    }


def compare_success(first: Variant, second: Variant) -> dict[str, Any]:
    common = [key for key in first.success if key in second.success]
    outcomes = ([variant.success[key] for key in common] for variant in (first, second))
    return PairedComparison.from_outcomes(*outcomes).as_dict(first.name, second.name)
