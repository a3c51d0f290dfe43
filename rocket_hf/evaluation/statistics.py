"""How sure a success rate is, and the difference of two on the same starts.

Intervals are at 95 %. Wilson's for a rate; for the difference of paired rates Newcombe's tenth method (Statistics in
Medicine 17, 1998, pages 2635-2650), which joins the Wilson intervals of both by their correlation; and McNemar's exact
test, which looks at the starts where one policy succeeded and the other did not.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rocket_hf.hub_cards.facts import Evaluation


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    return Evaluation("success", successes, episodes).interval


def rate_with_interval(successes: int, episodes: int) -> str:
    low, high = wilson(successes, episodes)
    return f"{successes} of {episodes}: {100 * (successes / episodes):.1f} % ({100 * low:.1f} to {100 * high:.1f})"


@dataclass(frozen=True)
class Comparison:
    """Of a first policy with a second one; counts of starts."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> "Comparison":
        pairs = list(zip(first, second, strict=True))
        return cls(*(pairs.count(outcome) for outcome in ((True, True), (True, False), (False, True), (False, False))))

    @property
    def episodes(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Of the success rates, the first's minus the second's."""
        return (self.only_first - self.only_second) / self.episodes

    @property
    def correlation(self) -> float:
        """Phi of the two outcomes, corrected for continuity where it is positive; 0 where one never changes."""
        a, b, c, d = self.both, self.only_first, self.only_second, self.neither
        scale = math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
        association = a * d - b * c
        if association > 0:
            association = max(0, association - self.episodes / 2)  # type: ignore[assignment]
        return association / scale if scale else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Newcombe's, for the difference."""
        first, second = (self.both + self.only_first), (self.both + self.only_second)
        below_first, above_first = distances(first, self.episodes)
        below_second, above_second = distances(second, self.episodes)
        phi = self.correlation
        low = self.difference - joined(below_first, above_second, phi)
        high = self.difference + joined(above_first, below_second, phi)
        return max(-1.0, low), min(1.0, high)

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how probable it is that chance alone divides them as unevenly."""
        unequal = self.only_first + self.only_second
        tail = sum(math.comb(unequal, count) for count in range(min(self.only_first, self.only_second) + 1))
        return min(1.0, 2 * tail / 2**unequal)

    def as_dict(self, first: str, second: str) -> dict[str, Any]:
        """With all that follows from the counts, and the sentence of policies with these names."""
        return asdict(self) | {
            "difference": self.difference,
            "interval": list(self.interval),
            "p_value": self.p_value,
            "sentence": self.sentence(first, second),
        }

    def sentence(self, first: str, second: str) -> str:
        """What may be said of the two, and no more."""
        low, high = self.interval
        said = (
            f"{first} succeeds {100 * self.difference:+.1f} points against {second} (95 % interval {100 * low:+.1f} to "
            f"{100 * high:+.1f}; exact McNemar p = {self.p_value:.3g}): "
        )
        if low <= 0 <= high:
            return said + "the interval of the difference contains zero, so these episodes do not tell them apart."
        return said + f"the interval of the difference does not contain zero, {first if low > 0 else second} is better."


def distances(successes: int, episodes: int) -> tuple[float, float]:
    """From a rate to the lower and to the upper end of its interval."""
    low, high = wilson(successes, episodes)
    rate = successes / episodes
    return rate - low, high - rate


def joined(one: float, other: float, correlation: float) -> float:
    """The distance of a difference's end, of those of its parts."""
    return math.sqrt(max(0.0, one**2 - 2 * correlation * one * other + other**2))
