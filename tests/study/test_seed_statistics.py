"""Statistics over training seeds: against scipy, hand-computed cases, and simulated studies."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from rocket_hf.study.seed_statistics import (
    SeedComparison,
    bootstrap_interval,
    equivalence_test,
    holm,
    interquartile_mean,
    is_equivalent,
    power,
    probability_of_improvement,
    seeds_for_power,
    sign_flip_test,
    smallest_detectable_difference,
    t_interval,
    t_test,
)

STUDIES, SEEDS, STARTS = 2000, 12, 100


def random_pairs(seeds: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seeds)
    return generator.normal(75, 8, seeds).round(), generator.normal(70, 8, seeds).round()


@pytest.mark.parametrize("seeds", [2, 3, 12])
def test_paired_t_interval_and_test_equal_scipy(seeds):
    first, second = random_pairs(seeds)
    reference = stats.ttest_rel(first, second)
    assert t_test(first - second) == pytest.approx(reference.pvalue)
    assert t_interval(first - second) == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert t_interval(first - second, 0.9) == pytest.approx(tuple(reference.confidence_interval(0.9)))


def test_t_interval_of_a_hand_computed_case():
    # mean 4, s = 2, standard error 2 / sqrt(3), t(2, 97.5 %) = 4.302653
    half_width = 4.302653 * 2 / math.sqrt(3)
    assert t_interval([2.0, 4.0, 6.0]) == pytest.approx((4 - half_width, 4 + half_width), abs=1e-5)


@pytest.mark.parametrize("seeds", [3, 8, 12])
def test_sign_flip_test_equals_scipys_exact_permutation_test(seeds):
    first, second = random_pairs(seeds)
    reference = stats.permutation_test(
        (first, second), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_test(first - second) == pytest.approx(reference.pvalue)


def test_sign_flip_test_of_hand_computed_cases():
    assert sign_flip_test([1.0] * 12) == 2 / 4096
    assert sign_flip_test([3.0, -1.0]) == 1.0  # The sums of the four flips are 2, 4, -4 and -2.
    assert sign_flip_test([3.0, 1.0, 1.0]) == 2 / 8  # Only the flips without and with all signs reach 5.
    assert sign_flip_test([0.0, 0.0]) == 1.0


def test_equivalence_test_equals_two_one_sided_tests_of_scipy():
    differences = np.array([3.0, -2.0, 5.0, -6.0, 4.0, 1.0, 0.0, -1.0])
    tests = [
        stats.ttest_1samp(differences, -10, alternative="greater"),
        stats.ttest_1samp(differences, 10, alternative="less"),
    ]
    assert equivalence_test(differences, 10) == pytest.approx(max(test.pvalue for test in tests))


def test_arms_are_equivalent_exactly_if_the_equivalence_test_is_significant():
    generator = np.random.default_rng(0)
    for _ in range(200):
        differences = generator.normal(generator.uniform(-12, 12), 9, 8)
        assert is_equivalent(differences, 10) == (equivalence_test(differences, 10) < 0.05)


def test_holm_adjusts_a_hand_computed_case():
    # Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.5 x 1
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_interquartile_mean_and_probability_of_improvement_of_hand_computed_cases():
    assert interquartile_mean(np.array([0.0, 3.0, 5.0, 100.0])) == 4.0
    assert interquartile_mean(np.array([0.0, 1.0, 3.0, 5.0, 6.0, 100.0])) == 15 / 4
    # 2 > 1, 2 = 2, 4 > 1, 4 > 2
    assert probability_of_improvement(np.array([2.0, 4.0]), np.array([1.0, 2.0])) == 3.5 / 4


def test_power_equals_that_of_a_published_table():
    # Cohen 1988, power of the t-test for means at 5 %, two-sided: d = 0.5 needs 34 pairs for 80 %, d = 0.8 needs 15.
    assert (seeds_for_power(0.5, 1.0), seeds_for_power(0.8, 1.0)) == (34, 15)
    assert power(0.0, 1.0, 10) == pytest.approx(0.05)


def test_smallest_detectable_difference_has_80_percent_power():
    for deviation, seeds in ((10.9, 12), (6.0, 4), (10.9, 3)):
        difference = smallest_detectable_difference(deviation, seeds)
        assert power(difference, deviation, seeds) == pytest.approx(0.8)


def test_single_seed_shows_nothing():
    comparison = SeedComparison((20.0,))
    assert (comparison.p, comparison.sign_flip_p, comparison.resolution) == (1.0, 1.0, math.inf)
    assert comparison.interval == (-math.inf, math.inf)
    assert not comparison.is_equivalent(10)


def test_equal_differences_of_all_seeds_are_certain():
    assert SeedComparison((5.0, 5.0, 5.0)).p == 0.0
    assert SeedComparison((0.0, 0.0, 0.0)).p == 1.0
    assert SeedComparison((0.0, 0.0, 0.0)).is_equivalent(10)


# Simulated studies


def simulate_outcomes(
    generator: np.random.Generator, effect: float, seeds: int = SEEDS, deviation: float = 9.5
) -> np.ndarray:
    """Return outcomes (2, seeds, STARTS) of an arm with a success rate of 72 % and of one that is better by `effect`.

    `deviation` is that of the difference between two trainings, in points.
    """
    training = generator.normal(0, deviation / math.sqrt(2), (2, seeds))
    rates = np.clip((72 + training + np.array([[0.0], [effect]])) / 100, 0, 1)
    return generator.random((2, seeds, STARTS)) < rates[..., None]


def simulate_differences(effect: float, seeds: int = SEEDS) -> list[np.ndarray]:
    """Return the differences of STUDIES studies in points."""
    generator = np.random.default_rng(0)
    rates = [100 * simulate_outcomes(generator, effect, seeds).mean(axis=2) for _ in range(STUDIES)]
    return [arms[1] - arms[0] for arms in rates]


def share(values: list[bool]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("effect", [0.0, 10.0])
@pytest.mark.parametrize("seeds", [4, 12])
def test_interval_covers_the_true_effect_in_93_to_97_percent_of_simulated_studies(effect, seeds):
    intervals = [t_interval(differences) for differences in simulate_differences(effect, seeds)]
    truth = effect if effect == 0 else effect - clipped_mean(effect)
    assert 0.93 <= share([low <= truth <= high for low, high in intervals]) <= 0.97


def clipped_mean(effect: float) -> float:
    """Return how much of the effect is lost because no success rate exceeds 100 %."""
    rates = 72 + effect + np.random.default_rng(1).normal(0, 9.5 / math.sqrt(2), 1_000_000)
    return float(np.mean(np.maximum(rates - 100, 0)))


@pytest.mark.parametrize(("seeds", "expected"), [(3, 0.17), (6, 0.43), (12, 0.83), (16, 0.92)])
def test_simulated_study_with_a_true_effect_of_10_points_finds_it_with_the_expected_power(seeds, expected):
    found = share([t_test(differences) < 0.05 for differences in simulate_differences(10.0, seeds)])
    assert found == pytest.approx(expected, abs=0.04)


def test_simulated_study_without_effect_finds_none():
    differences = simulate_differences(0.0)
    assert 0.03 <= share([t_test(values) < 0.05 for values in differences]) <= 0.07
    assert 0.03 <= share([sign_flip_test(values) < 0.05 for values in differences[:500]]) <= 0.07


def probability_of_equivalence(deviation: float, seeds: int) -> float:
    """Integrate P(|mean| < 10 - t s / sqrt(n)) over the distribution of s, for a true difference of zero."""
    quantile, scale = stats.t.ppf(0.95, seeds - 1), math.sqrt(seeds)

    def density(ratio: float) -> float:  # of s / deviation
        room = 10 - quantile * ratio * deviation / scale
        inside = 2 * stats.norm.cdf(room * scale / deviation) - 1 if room > 0 else 0.0
        return inside * stats.chi.pdf(ratio * math.sqrt(seeds - 1), seeds - 1) * math.sqrt(seeds - 1)

    return integrate.quad(density, 0, 10, limit=200, points=[10 * scale / (quantile * deviation)])[0]


@pytest.mark.parametrize("seeds", [6, 8, 12, 16])
def test_equal_arms_are_shown_to_be_equivalent_as_often_as_expected(seeds):
    generator = np.random.default_rng(0)
    found = share([is_equivalent(values, 10) for values in generator.normal(0, 10.9, (STUDIES, seeds))])
    assert found == pytest.approx(probability_of_equivalence(10.9, seeds), abs=0.04)


def test_bootstrap_interval_covers_the_mean_difference_over_seeds_and_starts():
    generator = np.random.default_rng(0)
    intervals = [
        bootstrap_interval(simulate_outcomes(generator, 0.0), lambda rates: float(rates[1].mean() - rates[0].mean()),
                           resamples=200, seed=study)
        for study in range(100)
    ]  # fmt: skip
    assert 0.88 <= share([low <= 0 <= high for low, high in intervals]) <= 1.0
