"""Confidence intervals of success rates, and the comparison of two policies on the same episode starts.

Intervals are at 95 %: Wilson's for a rate, and for the difference of paired rates Newcombe's method 10 (Statistics in
Medicine 17, 1998, pages 2635-2650), which combines the Wilson intervals of both rates with their correlation. The exact
McNemar test uses only the starts on which one policy succeeded and the other failed.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import binomtest


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    interval = binomtest(successes, episodes).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def format_rate(successes: int, episodes: int) -> str:
    """Return for example "9 of 10: 90.0 % (59.6 to 98.2)"."""
    low, high = wilson_interval(successes, episodes)
    return f"{successes} of {episodes}: {100 * (successes / episodes):.1f} % ({100 * low:.1f} to {100 * high:.1f})"


@dataclass(frozen=True)
class PairedComparison:
    """Numbers of episode starts on which both, only one, or neither of two policies succeeded."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def from_outcomes(cls, first: Sequence[bool], second: Sequence[bool]) -> "PairedComparison":
        """Count the outcomes of two policies, given in the same order of starts."""
        pairs = list(zip(first, second, strict=True))
        return cls(*(pairs.count(outcome) for outcome in ((True, True), (True, False), (False, True), (False, False))))

    @property
    def episodes(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Success rate of the first policy minus that of the second."""
        return (self.only_first - self.only_second) / self.episodes

    @property
    def correlation(self) -> float:
        """Phi coefficient of the two outcomes.

        It is corrected for continuity if positive, and 0 if one policy always or never succeeds.
        """
        a, b, c, d = self.both, self.only_first, self.only_second, self.neither
        scale = math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
        association = float(a * d - b * c)
        if association > 0:
            association = max(0.0, association - self.episodes / 2)
        return association / scale if scale else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Newcombe's interval of the difference."""
        first, second = (self.both + self.only_first), (self.both + self.only_second)
        below_first, above_first = wilson_distances(first, self.episodes)
        below_second, above_second = wilson_distances(second, self.episodes)
        phi = self.correlation
        low = self.difference - combine_distances(below_first, above_second, phi)
        high = self.difference + combine_distances(above_first, below_second, phi)
        return max(-1.0, low), min(1.0, high)

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the exact McNemar test: a binomial test on the starts with different outcomes."""
        different = self.only_first + self.only_second
        return float(binomtest(self.only_first, different).pvalue) if different else 1.0

    def as_dict(self, first: str, second: str) -> dict[str, Any]:
        """Return the counts, all derived values, and the sentence for policies with these names."""
        return asdict(self) | {
            "difference": self.difference,
            "interval": list(self.interval),
            "p_value": self.p_value,
            "sentence": self.sentence(first, second),
        }

    def sentence(self, first: str, second: str) -> str:
        """Return a sentence that claims a difference only if its interval excludes zero."""
        low, high = self.interval
        numbers = (
            f"{first} succeeds {100 * self.difference:+.1f} points against {second} (95 % interval {100 * low:+.1f} to "
            f"{100 * high:+.1f}; exact McNemar p = {self.p_value:.3g}): "
        )
        if low <= 0 <= high:
            return numbers + (
                "the interval of the difference contains zero, so these episodes do not show which policy is better."
            )
        better = first if low > 0 else second
        return numbers + f"the interval of the difference does not contain zero, {better} is better."


def wilson_distances(successes: int, episodes: int) -> tuple[float, float]:
    """Return the distances from a rate to the lower and to the upper end of its interval."""
    low, high = wilson_interval(successes, episodes)
    rate = successes / episodes
    return rate - low, high - rate


def combine_distances(one: float, other: float, correlation: float) -> float:
    """Combine the distances of two correlated rates into that of their difference."""
    return math.sqrt(max(0.0, one**2 - 2 * correlation * one * other + other**2))
