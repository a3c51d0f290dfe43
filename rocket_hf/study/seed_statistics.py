"""Statistics whose unit is the training seed.

Tests over rollouts (Wilson, Newcombe, McNemar) are about the given policies. A statement about a method must hold for
new training seeds, so the observations here are the differences d_1 ... d_n of n seeds, each between two arms with the
same seed, in points of success rate.

Shapes: A arms, S seeds, E episode starts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE, POWER, SIGNIFICANCE = 0.95, 0.8, 0.05
EXACT_SEEDS = 20  # most seeds for which all sign flips are enumerated (2^20 is about a million)
RESAMPLES = 2000
MOST_SEEDS = 1000  # largest number of seeds that `seeds_for_power` reports


def mean_difference(differences: Sequence[float]) -> float:
    return float(np.mean(differences))


def standard_deviation(differences: Sequence[float]) -> float:
    """Return s = sqrt(sum (d_i - mean)^2 / (n - 1))."""
    return float(np.std(differences, ddof=1))


def t_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the paired t interval, mean +- t(n - 1, (1 + confidence) / 2) s / sqrt(n).

    It is infinite for a single seed.
    """
    count, mean = len(differences), mean_difference(differences)
    if count < 2:
        return -math.inf, math.inf
    quantile = float(stats.t.ppf((1 + confidence) / 2, count - 1))
    half_width = quantile * standard_deviation(differences) / math.sqrt(count)
    return mean - half_width, mean + half_width


def t_test(differences: Sequence[float]) -> float:
    """Return the two-sided p of the paired t-test, 2 P(T_{n-1} > |mean| sqrt(n) / s). It is 1 for a single seed."""
    sign = math.copysign(1.0, mean_difference(differences))
    return 2 * one_sided_p([sign * value for value in differences], 0.0)


def one_sided_p(differences: Sequence[float], bound: float) -> float:
    """Return P(T_{n-1} > (mean - bound) sqrt(n) / s): small if the mean is clearly above `bound`."""
    count, distance = len(differences), mean_difference(differences) - bound
    if count < 2:
        return 0.5
    error = standard_deviation(differences) / math.sqrt(count)
    if error == 0:
        return 0.5 if distance == 0 else float(distance < 0)
    return float(stats.t.sf(distance / error, count - 1))


def sign_flip_test(differences: Sequence[float]) -> float:
    """Return the share of all 2^n sign flips (4,096 for 12 seeds) whose |sum| is at least that of the differences.

    If both arms of a comparison were equal in distribution, each difference would be as likely with the other sign.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) > EXACT_SEEDS:
        raise ValueError(f"the exact sign-flip test is for at most {EXACT_SEEDS} seeds, got {len(values)}")
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    tolerance = 1e-9 * np.abs(values).sum()  # The order of summation changes the last digits.
    return float(np.mean(np.abs(sums) >= abs(values.sum()) - tolerance))


def equivalence_test(differences: Sequence[float], margin: float) -> float:
    """Return the p of two one-sided t-tests (TOST): the larger p of "mean > -margin" and "mean < margin".

    It is below 5 % exactly if the 90 % t interval is inside +-margin.
    """
    above = one_sided_p(differences, -margin)
    below = one_sided_p([-value for value in differences], -margin)
    return max(above, below)


def is_equivalent(differences: Sequence[float], margin: float) -> bool:
    low, high = t_interval(differences, confidence=1 - 2 * SIGNIFICANCE)
    return -margin < low and high < margin


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values: of m sorted ones, max over j <= i of min(1, (m - j + 1) p_j)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


# Resolution of a study


def power(difference: float, deviation: float, seeds: int) -> float:
    """Return the probability that a two-sided t-test at 5 % detects a true difference.

    It is P(|T'| > t(n - 1, 97.5 %)) for the noncentral t with n - 1 degrees of freedom and the noncentrality
    difference sqrt(n) / deviation.
    """
    if seeds < 2:
        return 0.0
    if deviation == 0:
        return float(difference != 0)
    critical = float(stats.t.ppf(1 - SIGNIFICANCE / 2, seeds - 1))
    noncentrality = abs(difference) * math.sqrt(seeds) / deviation
    # nct.cdf loses its digits far from the bulk, where the lower tail is zero anyway.
    lower = float(stats.nct.cdf(-critical, seeds - 1, noncentrality)) if noncentrality < 5 else 0.0
    return float(stats.nct.sf(critical, seeds - 1, noncentrality)) + lower


def smallest_detectable_difference(deviation: float, seeds: int) -> float:
    """Return the true difference that is detected with 80 % power; infinite for a single seed."""
    if seeds < 2:
        return math.inf
    low, high = 0.0, 1.0
    if deviation == 0:
        return 0.0
    while power(high * deviation, deviation, seeds) < POWER:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle * deviation, deviation, seeds) >= POWER else (middle, high)
    return high * deviation


def seeds_for_power(difference: float, deviation: float) -> int:
    """Return the smallest number of seeds that detects a true difference with 80 % power, at most MOST_SEEDS."""
    low, high = 2, MOST_SEEDS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, deviation, middle) >= POWER else (middle + 1, high)
    return high


# Descriptive statistics


def interquartile_mean(rates: np.ndarray) -> float:
    """Return the mean of the middle half: the lowest and the highest floor(n / 4) of n values are left out."""
    return float(stats.trim_mean(rates, 0.25))


def probability_of_improvement(first: np.ndarray, second: np.ndarray) -> float:
    """Return P(X > Y) + P(X = Y) / 2 over all pairs of a seed X of the first and a seed Y of the second arm."""
    pairs = first[:, None] - second[None, :]
    return float(np.mean(pairs > 0) + np.mean(pairs == 0) / 2)


def bootstrap_interval(
    outcomes: np.ndarray, statistic: Callable[[np.ndarray], float], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a statistic of the success rates (A, S), given outcomes (A, S, E).

    Each resample draws seeds, then starts within each drawn seed. All arms use the same draws, because they share seeds
    and starts.
    """
    generator = np.random.default_rng(seed)
    _, seeds, starts = outcomes.shape
    values = []
    for _ in range(resamples):
        drawn_seeds = generator.integers(seeds, size=(seeds, 1))
        drawn_starts = generator.integers(starts, size=(seeds, starts))
        values.append(statistic(outcomes[:, drawn_seeds, drawn_starts].mean(axis=2)))
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class SeedComparison:
    """All tests of one comparison between arms, from its difference in points for each seed."""

    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean_difference(self.differences)

    @property
    def interval(self) -> tuple[float, float]:
        return t_interval(self.differences)

    @property
    def interval_90(self) -> tuple[float, float]:
        return t_interval(self.differences, confidence=1 - 2 * SIGNIFICANCE)

    @property
    def p(self) -> float:
        return t_test(self.differences)

    @property
    def sign_flip_p(self) -> float:
        return sign_flip_test(self.differences)

    @property
    def resolution(self) -> float:
        """Smallest difference that these seeds detect with 80 % power, given the observed deviation."""
        if len(self.differences) < 2:
            return math.inf
        return smallest_detectable_difference(standard_deviation(self.differences), len(self.differences))

    def is_equivalent(self, margin: float) -> bool:
        return is_equivalent(self.differences, margin)
