"""Intervals and tests against scipy's, by hand, and by simulation."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from rocket_hf.evaluation.statistics import Comparison, wilson


@pytest.mark.parametrize(("successes", "episodes"), [(0, 10), (3, 10), (40, 40), (23, 32), (481, 500)])
def test_wilsons_interval_is_scipys(successes, episodes):
    wanted = binomtest(successes, episodes).proportion_ci(method="wilson")
    assert wilson(successes, episodes) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (8, 2), (5, 5), (3, 12), (30, 9)])
def test_mcnemars_test_is_scipys_binomial_test(first, second):
    wanted = binomtest(first, first + second).pvalue if first + second else 1.0
    assert Comparison(4, first, second, 7).p_value == pytest.approx(wanted)


def test_pairs_are_counted():
    comparison = Comparison.of([True, True, False, False, True], [True, False, True, False, True])
    assert comparison == Comparison(both=2, only_first=1, only_second=1, neither=1)
    assert comparison.difference == 0


def test_without_correlation_the_interval_is_that_of_independent_rates():
    """Newcombe's for independent rates, from scipy's Wilson intervals."""
    comparison = Comparison(both=8, only_first=8, only_second=2, neither=2)  # ad = bc
    assert comparison.correlation == 0
    one, two = (binomtest(count, 20).proportion_ci(method="wilson") for count in (16, 10))
    low = 0.3 - math.hypot(0.8 - one.low, two.high - 0.5)
    high = 0.3 + math.hypot(one.high - 0.8, 0.5 - two.low)
    assert comparison.interval == pytest.approx((low, high), abs=1e-6)


def test_correlation_is_phi_corrected_for_continuity():
    assert Comparison(30, 5, 5, 60).correlation == pytest.approx((1800 - 25 - 50) / (35 * 65))
    assert Comparison(5, 5, 5, 6).correlation == 0  # 5 of 30 - 25, within half of the 21 pairs
    assert Comparison(5, 20, 20, 5).correlation == pytest.approx((25 - 400) / 625)
    assert Comparison(10, 0, 0, 0).correlation == 0


def test_the_interval_narrows_with_correlation_and_turns_with_the_policies():
    together, apart = Comparison(45, 10, 2, 43), Comparison(30, 25, 17, 28)
    assert together.difference == apart.difference
    assert np.diff(together.interval) < np.diff(apart.interval)
    swapped = Comparison(45, 2, 10, 43)
    assert swapped.interval == pytest.approx((-together.interval[1], -together.interval[0]))


def test_the_interval_covers_the_true_difference():
    """At 95 %, of pairs drawn with rates 0.75 and 0.6 that agree more often than by chance."""
    draw = np.random.default_rng(0)
    pairs = draw.multinomial(40, [0.5, 0.25, 0.1, 0.15], size=2000)
    covered = [low <= 0.15 <= high for low, high in (Comparison(*map(int, pair)).interval for pair in pairs)]
    assert 0.93 <= np.mean(covered) <= 0.99


def test_the_sentence_says_when_zero_is_inside():
    assert "contains zero, so" in Comparison(10, 3, 2, 5).sentence("rocket", "none")
    better = Comparison(10, 20, 1, 9).sentence("rocket", "none")
    assert "does not contain zero, rocket is better" in better and "+47.5 points" in better
    assert "none is better" in Comparison(10, 1, 20, 9).sentence("rocket", "none")
