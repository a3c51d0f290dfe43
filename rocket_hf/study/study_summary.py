"""Numbers of a study's report: arms and comparisons of each phase and setting, from whatever is complete."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .seed_statistics import (
    SeedComparison,
    bootstrap_interval,
    holm,
    interquartile_mean,
    mean_difference,
    probability_of_improvement,
    t_interval,
)
from .study_comparisons import is_interaction, parse_comparison
from .study_file import Study
from .study_folder import StudyFolder
from .study_plan import StudyPlan
from .study_units import Arm

# Prefixes of the depth errors of the policy, of its untrained weights, of the teacher and of the best constant
DEPTH_KINDS = ("", "untrained_", "teacher_", "constant_")


@dataclass(frozen=True)
class ComparisonSummary:
    """A comparison in one setting, in points of success, with one difference per seed."""

    name: str
    setting: str
    seeds: list[int]
    tests: SeedComparison
    headroom: float | None  # points that perfect 3D gains in this setting
    margin: float
    is_stopped: bool
    holm_p: float | None = None  # p adjusted for all further comparisons of the phase and setting
    improvement: tuple[float, float, float] | None = None  # probability of improvement, with its bootstrap interval

    @property
    def share(self) -> float | None:
        return self.tests.mean / self.headroom if self.headroom else None

    @property
    def is_equivalent(self) -> bool:
        """Equivalence: the 90 % interval is inside the margin. A stopped comparison never shows it."""
        return not self.is_stopped and self.tests.is_equivalent(self.margin)

    def as_dict(self) -> dict[str, Any]:
        tests = self.tests
        return {
            "name": f"{self.setting}: {self.name}",
            "per_seed": list(tests.differences),
            "mean": tests.mean,
            "interval": finite(tests.interval),
            "p": tests.p,
            "headroom": self.headroom,
            "seeds": self.seeds,
            "sign_flip_p": tests.sign_flip_p,
            "holm_p": self.holm_p,
            "interval_90": finite(tests.interval_90),
            "margin": self.margin,
            "equivalent": self.is_equivalent,
            "not_detectable_below": finite([tests.resolution])[0],
            "stopped": self.is_stopped,
            "probability_of_improvement": self.improvement,
        }


@dataclass(frozen=True)
class ArmSummary:
    """Results of a variant in one setting. Means are over the seeds that have them."""

    variant: str
    rates: dict[int, float]  # success in percent by seed, in the compared evaluations
    by_evaluation: dict[str, dict[int, float]]
    by_task: dict[str, float]
    depth_errors: dict[str, float]  # relative errors by DEPTH_KINDS
    alignment_loss: float | None
    cpu_minutes: float | None  # of one training

    @property
    def depth_error(self) -> float | None:
        return self.depth_errors.get("")

    @property
    def mean(self) -> float:
        return mean_difference(list(self.rates.values()))

    @property
    def interval(self) -> tuple[float, float]:
        return t_interval(list(self.rates.values()))

    @property
    def interquartile_mean(self) -> float:
        return interquartile_mean(np.array(list(self.rates.values())))


@dataclass(frozen=True)
class SettingSummary:
    """Results of a phase in one setting."""

    phase: str
    setting: str
    arms: list[ArmSummary]
    comparisons: dict[str, ComparisonSummary]  # those of the study file, by name
    expert: tuple[int, int] | None  # failed attempts of the scripted experts, and recorded demonstrations
    differences: dict[str, ComparisonSummary]  # variant -> its difference to the reference, for the table of arms

    def arm(self, variant: str) -> ArmSummary | None:
        return next((arm for arm in self.arms if arm.variant == variant), None)


@dataclass(frozen=True)
class PhaseSummary:
    """Results of a phase."""

    name: str
    settings: list[SettingSummary]
    completed: int  # number of completed units
    units: int  # number of units known so far; a phase that waits for an earlier one has none
    cpu_hours: float
    commits: list[str]


class StudySummarizer:
    """Summaries of the phases of a study."""

    def __init__(self, folder: StudyFolder, plan: StudyPlan):
        self.folder, self.plan, self.study = folder, plan, folder.study

    def phases(self) -> list[PhaseSummary]:
        return [self.phase(name) for name in self.study.phases]

    def phase(self, name: str) -> PhaseSummary:
        units = self.plan.units([name])
        results = [self.folder.results[unit.name] for unit in units if unit.name in self.folder.results]
        settings = [self.setting(name, setting) for setting in self.plan.settings(name)]
        return PhaseSummary(
            name,
            [setting for setting in settings if setting.arms],
            len(results),
            len(units),
            sum(result["cpu_seconds"] for result in results) / 3600,
            sorted({result["commit"] for result in results if result["commit"]}),
        )

    def setting(self, phase: str, setting: str) -> SettingSummary:
        arms = [self.arm(phase, setting, variant) for variant in self.study.phases[phase].variants]
        comparisons = [self.comparison(phase, setting, name) for name in self.plan.comparisons(phase)]
        complete = {comparison.name: comparison for comparison in comparisons if comparison is not None}
        further = [name for name in self.study.phases[phase].further if name in complete]
        for name, p in zip(further, holm([complete[name].tests.p for name in further]), strict=True):
            complete[name] = replace(complete[name], holm_p=p)
        reference = reference_variant(self.study, phase)
        differences = {
            variant: difference
            for variant in self.study.phases[phase].variants
            if variant != reference and reference is not None
            if (difference := self.comparison(phase, setting, f"{variant} - {reference}")) is not None
        }
        return SettingSummary(
            phase, setting, [arm for arm in arms if arm.rates], complete, self.expert(phase, setting), differences
        )

    def expert(self, phase: str, setting: str) -> tuple[int, int] | None:
        unit = self.plan.planner.record(setting, self.study.phases[phase].variants[0])
        result = self.folder.results.get(unit.name, {})
        return (result["failed"], result["demonstrations"]) if "failed" in result else None

    def arm(self, phase_name: str, setting: str, variant: str) -> ArmSummary:
        phase, outcomes = self.study.phases[phase_name], self.plan.outcomes
        rates = outcomes.rates(setting, variant, phase.seeds, phase.measured_on)
        paths = [Arm(setting, variant, seed).path for seed in rates]
        cpu_seconds = self.mean_of([f"train/{path}" for path in paths], "cpu_seconds")
        probes = [f"probe/{path}" for path in paths] if phase.depth else []
        return ArmSummary(
            variant,
            rates,
            {name: outcomes.rates(setting, variant, phase.seeds, [name]) for name in phase.evaluations},
            self.task_rates(setting, variant, list(rates), phase.measured_on),
            {kind: error for kind in DEPTH_KINDS if (error := self.mean_of(probes, f"{kind}depth_error")) is not None},
            self.mean_of([f"train/{path}" for path in paths], "alignment_loss"),
            None if cpu_seconds is None else cpu_seconds / 60,
        )

    def mean_of(self, units: Sequence[str], key: str) -> float | None:
        results = [self.folder.results[unit] for unit in units if unit in self.folder.results]
        values = [result[key] for result in results if result.get(key) is not None]
        return mean_difference(values) if values else None

    def task_rates(
        self, setting: str, variant: str, seeds: Sequence[int], evaluations: Sequence[str]
    ) -> dict[str, float]:
        """Return the success rate of each task in percent, over all seeds."""
        by_task: dict[str, list[bool]] = {}
        for seed in seeds:
            outcomes = self.plan.outcomes.outcomes(Arm(setting, variant, seed), evaluations) or {}
            for (_, task, _), success in outcomes.items():
                by_task.setdefault(task, []).append(success)
        return {task: 100 * sum(successes) / len(successes) for task, successes in by_task.items()}

    def comparison(self, phase_name: str, setting: str, name: str) -> ComparisonSummary | None:
        """Return a comparison over the seeds that have it, or None if there is no such seed."""
        phase = self.study.phases[phase_name]
        differences = self.plan.outcomes.differences(name, setting, phase.seeds, phase.measured_on)
        if not differences:
            return None
        headroom = self.plan.headroom(phase_name, setting) if name != self.study.headroom else None
        return ComparisonSummary(
            name,
            setting,
            list(differences),
            SeedComparison(tuple(differences.values())),
            headroom,
            self.study.phase_margin(phase_name),
            name in self.plan.comparisons(phase_name) and self.plan.is_stopped(phase_name, setting, name),
            improvement=self.improvement(name, setting, list(differences), phase.measured_on),
        )

    def improvement(
        self, name: str, setting: str, seeds: list[int], evaluations: Sequence[str]
    ) -> tuple[float, float, float] | None:
        """Return the probability that a training of the first arm is better than one of the second."""
        if is_interaction(name) or len(seeds) < 2:
            return None
        outcomes = self.plan.outcomes.outcome_array(list(parse_comparison(name)), setting, seeds, evaluations)

        def statistic(rates: np.ndarray) -> float:
            return probability_of_improvement(rates[0], rates[1])

        return statistic(outcomes.mean(axis=2)), *bootstrap_interval(outcomes, statistic)


def finite(values: Sequence[float]) -> list[float | None]:
    """Replace infinite ends of intervals, which JSON cannot contain, by None."""
    return [value if math.isfinite(value) else None for value in values]


def reference_variant(study: Study, phase: str) -> str | None:
    """Return the variant that the others are compared with: the last one of the primary comparison."""
    primary = study.phases[phase].primary
    return list(parse_comparison(primary))[-1] if primary is not None else None
