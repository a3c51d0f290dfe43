"""Arms of each phase, given the results so far: settings chosen by an earlier phase, and comparisons stopped early."""

from collections.abc import Iterator, Mapping
from typing import Any

from .seed_statistics import mean_difference
from .study_comparisons import differences_of, is_interaction, parse_comparison
from .study_file import Study
from .study_outcomes import StudyOutcomes
from .study_units import Arm, Unit, UnitPlanner, with_needs


class StudyPlan:
    """Plan of the remaining units, recomputed after each completed unit."""

    def __init__(self, study: Study, planner: UnitPlanner, results: Mapping[str, dict[str, Any]]):
        self.study, self.planner, self.results = study, planner, results
        self.outcomes = StudyOutcomes(results)

    def units(self, phases: list[str]) -> list[Unit]:
        """Return all units of these phases that are known so far, seed by seed."""
        return with_needs([unit for phase in phases for unit in self.phase_units(phase)])

    def phase_units(self, name: str) -> list[Unit]:
        phase = self.study.phases[name]
        return [unit for arm in self.arms(name) for unit in self.planner.arm_units(arm, phase.evaluations, phase.depth)]

    def remaining(self, phases: list[str]) -> list[Unit]:
        return [unit for unit in self.units(phases) if unit.name not in self.results]

    def is_complete(self, name: str) -> bool:
        arms = list(self.arms(name))
        return bool(arms) and all(unit.name in self.results for unit in self.phase_units(name))

    def arms(self, name: str) -> Iterator[Arm]:
        """Yield the arms of a phase, seed by seed, without those that futility stops."""
        phase = self.study.phases[name]
        for number, seed in enumerate(phase.seeds):
            for setting in self.settings(name):
                active = self.active_variants(name, setting, number)
                yield from (Arm(setting, variant, seed) for variant in phase.variants if variant in active)

    def settings(self, name: str) -> list[str]:
        """Return the settings of a phase; none if they depend on an earlier phase that is not complete."""
        phase = self.study.phases[name]
        if phase.best_of is None:
            return phase.settings
        return [self.best_setting(phase.best_of)] if self.is_complete(phase.best_of) else []

    def best_setting(self, name: str) -> str:
        """Return the setting of a phase with the largest share of the headroom, or gain if there is no headroom."""
        phase = self.study.phases[name]
        assert phase.primary is not None
        primary = phase.primary

        def gain(setting: str) -> float:
            gains = self.outcomes.differences(primary, setting, phase.seeds, phase.measured_on)
            room = self.headroom(name, setting) if primary != self.study.headroom else None
            share = max(room, 1.0) if room is not None else 1.0
            return mean_difference(list(gains.values())) / share

        return max(self.settings(name), key=gain)

    def headroom(self, name: str, setting: str) -> float | None:
        """Return the mean headroom of a setting in points, over all seeds of all phases that have it."""
        phase = self.study.phases[name]
        if self.study.headroom is None:
            return None
        seeds = dict.fromkeys(seed for other in self.study.phases.values() for seed in other.seeds)
        values = self.outcomes.differences(self.study.headroom, setting, seeds, phase.measured_on)
        return mean_difference(list(values.values())) if values else None

    # Futility

    def comparisons(self, name: str) -> list[str]:
        """Return all comparisons of a phase, with the two differences of each interaction."""
        phase = self.study.phases[name]
        every = [phase.primary, *phase.further, *phase.controls, phase.input_control]
        known = [comparison for comparison in every if comparison is not None]
        parts = [part for comparison in known if is_interaction(comparison) for part in differences_of(comparison)]
        return list(dict.fromkeys([*known, *parts]))

    def active_variants(self, name: str, setting: str, number: int) -> set[str]:
        """Return the variants that a phase trains with its seed of this number (0-based)."""
        phase = self.study.phases[name]
        if phase.futility_after is None or number < phase.futility_after or not self.comparisons(name):
            return set(phase.variants)
        compared = {variant for comparison in self.comparisons(name) for variant in parse_comparison(comparison)}
        active = set(phase.variants) - compared
        for comparison in self.comparisons(name):
            if self.is_interim_positive(name, setting, comparison):
                active |= set(parse_comparison(comparison))
        return active

    def is_interim_positive(self, name: str, setting: str, comparison: str) -> bool:
        """Return whether the seeds before the interim look are complete and their mean is positive.

        Interactions are not stopped: each of their arms is a reference of the others.
        """
        interim = self.interim_differences(name, setting, comparison)
        return interim is not None and (is_interaction(comparison) or mean_difference(interim) > 0)

    def interim_differences(self, name: str, setting: str, comparison: str) -> list[float] | None:
        phase = self.study.phases[name]
        seeds = phase.seeds[: phase.futility_after]
        differences = self.outcomes.differences(comparison, setting, seeds, phase.measured_on)
        return list(differences.values()) if len(differences) == len(seeds) else None

    def is_stopped(self, name: str, setting: str, comparison: str) -> bool:
        """Return whether the interim look has stopped a comparison."""
        if self.study.phases[name].futility_after is None:
            return False
        interim = self.interim_differences(name, setting, comparison)
        return interim is not None and not self.is_interim_positive(name, setting, comparison)
