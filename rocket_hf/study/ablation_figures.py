"""What an ablation found, in numbers: of each variant over its seeds, and of variants against each other.

Of a seed that is not evaluated yet nothing is told.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rocket_hf.evaluation.statistics import Comparison, wilson
from rocket_hf.training.journal import read_journal

from .ablation import Ablation, phase
from .ablation_training import MEMORY
from .curves import Curve, end_of, level, mean, series

BASELINES = ("none", "shared")  # what every other variant is tested against
Start = tuple[int, str, int]  # training seed, task, seed of the rollout's start


@dataclass
class Training:
    """One run, by its journal. Curves by step."""

    seed: int
    action: Curve
    alignment: Curve  # mean over layer pairs
    between_pairs: Curve  # mean cosine of their gradients
    conflicting: Curve  # share of pairs of pairs whose cosine is below 0
    with_action: Curve
    seconds: list[float]  # of each step, without what is measured beside it
    bytes: int
    memory: str  # of which bytes these are


@dataclass
class Variant:
    name: str
    trainings: list[Training]
    success: dict[Start, bool]

    def counts(self, **of: Any) -> tuple[int, int]:
        """Successes and rollouts, of a seed or of a task where one is given."""
        chosen = [
            success
            for (seed, task, _), success in self.success.items()
            if of.get("seed", seed) == seed and of.get("task", task) == task
        ]
        return sum(chosen), len(chosen)


def variants_of(ablation: Ablation) -> dict[str, Variant]:
    return {name: variant_of(ablation, name) for name in ablation.recipes}


def variant_of(ablation: Ablation, name: str) -> Variant:
    found = ablation.phases.results
    seeds = [seed for seed in ablation.seeds if phase("rollouts", name, seed) in found]
    success = {
        (seed, episode["task"], episode["seed"]): episode["success"]
        for seed in seeds
        for episode in found[phase("rollouts", name, seed)]["episodes"]
    }
    return Variant(name, [read_training(ablation.run_folder(name, seed), seed) for seed in seeds], success)


def read_training(run: Path, seed: int) -> Training:
    records = read_journal(run / "journal.jsonl")
    steps = [record for record in records if "loss" in record]
    on_gpu = [record["memory_mib"] for record in records if "memory_mib" in record]
    return Training(
        seed,
        action=[(record["step"], parts_mean(record, "action/")) for record in steps],
        alignment=[(r["step"], parts_mean(r, "alignment/")) for r in steps if any(map(is_pair, r))],
        between_pairs=series(steps, "agreement/pairs"),
        conflicting=series(steps, "agreement/conflicting"),
        with_action=series(steps, "agreement/action"),
        seconds=[seconds_of(record) for record in steps],
        bytes=round(max(on_gpu) * 2**20) if on_gpu else int((run / MEMORY).read_text()),
        memory="on the GPU" if on_gpu else "resident",
    )


def is_pair(name: str) -> bool:
    return name.startswith("alignment/")


def parts_mean(record: dict[str, Any], prefix: str) -> float:
    return mean([value for name, value in record.items() if name.startswith(prefix)])


def seconds_of(record: dict[str, Any]) -> float:
    return sum(value for name, value in record.items() if name.startswith("seconds/") and name != "seconds/agreement")


def facts(variants: dict[str, Variant]) -> dict[str, Any]:
    """Of each variant, by its name. What it has none of is None."""
    return {name: told(variant) | {"against": against(variants, name)} for name, variant in variants.items()}


def told(variant: Variant) -> dict[str, Any]:
    won, rollouts = variant.counts()
    runs = variant.trainings
    tasks = dict.fromkeys(task for _, task, _ in variant.success)
    return {
        "successes": won,
        "rollouts": rollouts,
        "rate": won / rollouts,
        "interval": list(wilson(won, rollouts)),
        "by_seed": {run.seed: variant.counts(seed=run.seed) for run in runs},
        "by_task": {task: variant.counts(task=task) for task in tasks},
        "action_loss": over_seeds([end_of(run.action) for run in runs]),
        "alignment_loss": over_seeds([end_of(run.alignment) for run in runs if run.alignment]),
        "agreement_between_pairs": over_seeds([level(run.between_pairs) for run in runs if run.between_pairs]),
        "conflicting_pairs": over_seeds([level(run.conflicting) for run in runs if run.conflicting]),
        "agreement_with_action": over_seeds([level(run.with_action) for run in runs if run.with_action]),
        "seconds_per_step": median(second for run in runs for second in run.seconds),
        "peak_memory_bytes": max(run.bytes for run in runs),
        "memory": runs[0].memory,
    }


def over_seeds(values: list[float]) -> dict[str, Any] | None:
    return {"mean": mean(values), "by_seed": values} if values else None


def against(variants: dict[str, Variant], name: str) -> dict[str, dict[str, Any]]:
    """Compared with each baseline on the starts of all seeds that both have been evaluated on."""
    return {
        other: compared(variants[name], variants[other]) for other in BASELINES if other in variants and other != name
    }


def compared(first: Variant, second: Variant) -> dict[str, Any]:
    common = [start for start in first.success if start in second.success]
    comparison = Comparison.of([first.success[start] for start in common], [second.success[start] for start in common])
    return comparison.as_dict(first.name, second.name)
