"""Tests of confidence intervals and significance tests against values from formulas, scipy and simulation."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from rocket_hf.evaluation.statistics import PairedComparison, wilson_interval

Z = 1.959963984540054  # quantile of the standard normal distribution for a two-sided 95 % interval


@pytest.mark.parametrize(("successes", "episodes"), [(0, 10), (3, 10), (40, 40), (23, 32), (481, 500)])
def test_wilson_interval_matches_its_formula(successes, episodes):
    """Check that the ends of the interval solve (rate - p)^2 = z^2 p (1 - p) / n, a quadratic equation in p."""
    rate = successes / episodes
    ends = np.roots([1 + Z**2 / episodes, -2 * rate - Z**2 / episodes, rate**2])
    assert wilson_interval(successes, episodes) == pytest.approx(sorted(ends), abs=1e-9)


def test_wilson_interval_matches_published_values():
    """Check the example of Newcombe (Statistics in Medicine 17, 1998, pages 857-872) with 81 successes of 263."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (8, 2), (5, 5), (3, 12), (30, 9)])
def test_p_value_of_exact_mcnemar_test_matches_sum_of_binomial_coefficients(first, second):
    different = first + second
    tail = sum(math.comb(different, count) for count in range(min(first, second) + 1))
    expected = min(1.0, 2 * tail / 2**different)
    assert PairedComparison(4, first, second, 7).p_value == pytest.approx(expected)


def test_comparison_counts_outcome_pairs():
    comparison = PairedComparison.from_outcomes([True, True, False, False, True], [True, False, True, False, True])
    assert comparison == PairedComparison(both=2, only_first=1, only_second=1, neither=1)
    assert comparison.difference == 0


def test_interval_of_uncorrelated_outcomes_equals_interval_of_independent_rates():
    """Check against Newcombe's interval for independent rates (16/20 and 10/20), from scipy's Wilson intervals."""
    comparison = PairedComparison(both=8, only_first=8, only_second=2, neither=2)  # 8 * 2 = 8 * 2: no correlation
    assert comparison.correlation == 0
    first, second = (binomtest(count, 20).proportion_ci(method="wilson") for count in (16, 10))
    low = 0.3 - math.hypot(0.8 - first.low, second.high - 0.5)
    high = 0.3 + math.hypot(first.high - 0.8, 0.5 - second.low)
    assert comparison.interval == pytest.approx((low, high), abs=1e-6)


def test_correlation_is_phi_corrected_for_continuity():
    """Check (ad - bc) / sqrt(product of the margins); a positive ad - bc is first reduced by n/2, at most to 0."""
    assert PairedComparison(30, 5, 5, 60).correlation == pytest.approx((1800 - 25 - 50) / (35 * 65))
    assert PairedComparison(5, 5, 5, 6).correlation == 0  # ad - bc = 30 - 25 is less than n/2 = 10.5
    assert PairedComparison(5, 20, 20, 5).correlation == pytest.approx((25 - 400) / 625)
    assert PairedComparison(10, 0, 0, 0).correlation == 0


def test_interval_narrows_with_correlation_and_is_antisymmetric():
    correlated, uncorrelated = PairedComparison(45, 10, 2, 43), PairedComparison(30, 25, 17, 28)
    assert correlated.difference == uncorrelated.difference
    assert np.diff(correlated.interval) < np.diff(uncorrelated.interval)
    swapped = PairedComparison(45, 2, 10, 43)
    assert swapped.interval == pytest.approx((-correlated.interval[1], -correlated.interval[0]))


def test_interval_covers_true_difference_in_about_95_percent_of_simulations():
    """Check the coverage on simulated pairs with success rates 0.75 and 0.6 that agree more often than by chance."""
    generator = np.random.default_rng(0)
    pairs = generator.multinomial(40, [0.5, 0.25, 0.1, 0.15], size=2000)
    is_covered = [low <= 0.15 <= high for low, high in (PairedComparison(*map(int, pair)).interval for pair in pairs)]
    assert 0.93 <= np.mean(is_covered) <= 0.99


def test_sentence_claims_a_difference_only_if_the_interval_excludes_zero():
    assert "contains zero, so" in PairedComparison(10, 3, 2, 5).sentence("rocket", "none")
    better = PairedComparison(10, 20, 1, 9).sentence("rocket", "none")
    assert "does not contain zero, rocket is better" in better and "+47.5 points" in better
    assert "none is better" in PairedComparison(10, 1, 20, 9).sentence("rocket", "none")
