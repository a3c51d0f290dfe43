"""Success rates of a study's arms, and the differences between them for each seed, from the completed units."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .study_comparisons import parse_comparison
from .study_units import Arm, slug

EpisodeStart = tuple[str, str, int]  # evaluation, task, seed of the episode


class StudyOutcomes:
    """Outcomes of all evaluations. `results` are those of the completed units by name, and may grow."""

    def __init__(self, results: Mapping[str, dict[str, Any]]):
        self.results = results

    def outcomes(self, arm: Arm, evaluations: Iterable[str]) -> dict[EpisodeStart, bool] | None:
        """Return the outcome of each episode start, or None if an evaluation is missing."""
        outcomes: dict[EpisodeStart, bool] = {}
        for evaluation in evaluations:
            result = self.results.get(f"evaluate/{arm.path}/{slug(evaluation)}")
            if result is None:
                return None
            outcomes |= {(evaluation, task, seed): success for task, seed, success in result["episodes"]}
        return outcomes

    def rate(self, arm: Arm, evaluations: Iterable[str]) -> float | None:
        """Return the success rate in percent, or None if it is not complete."""
        outcomes = self.outcomes(arm, evaluations)
        return 100 * sum(outcomes.values()) / len(outcomes) if outcomes else None

    def rates(self, setting: str, variant: str, seeds: Iterable[int], evaluations: Sequence[str]) -> dict[int, float]:
        """Return the success rate of each evaluated seed."""
        rates = {seed: self.rate(Arm(setting, variant, seed), evaluations) for seed in seeds}
        return {seed: rate for seed, rate in rates.items() if rate is not None}

    def differences(
        self, comparison: str, setting: str, seeds: Iterable[int], evaluations: Sequence[str]
    ) -> dict[int, float]:
        """Return a comparison in points for each seed of which all variants have been evaluated."""
        seeds = list(seeds)
        signs = parse_comparison(comparison)
        rates = {variant: self.rates(setting, variant, seeds, evaluations) for variant in signs}
        return {
            seed: sum(sign * rates[variant][seed] for variant, sign in signs.items())
            for seed in seeds
            if all(seed in of_variant for of_variant in rates.values())
        }

    def outcome_array(
        self, variants: Sequence[str], setting: str, seeds: Iterable[int], evaluations: Sequence[str]
    ) -> np.ndarray:
        """Return the outcomes (A variants, S seeds, E starts), in the same order of starts."""
        starts: list[EpisodeStart] | None = None
        rows = []
        for variant in variants:
            of_variant = []
            for seed in seeds:
                outcomes = self.outcomes(Arm(setting, variant, seed), evaluations)
                assert outcomes is not None
                starts = starts or sorted(outcomes)
                of_variant.append([outcomes[start] for start in starts])
            rows.append(of_variant)
        return np.array(rows, dtype=bool)
