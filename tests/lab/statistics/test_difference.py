"""Differences: published examples, degenerate cases, and what is refused."""

import math
from statistics import NormalDist

import pytest

from polarlight.lab.statistics import contrast, from_differences, paired, sign_flip_p, welch
from polarlight.lab.statistics.difference import MOST_ENUMERATED

# Student (1908), Cushny and Peebles' hours of sleep: differences of two drugs for ten patients.
SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
# Fisher (1935): Darwin's maize, crossed minus self-fertilized heights in eighths of an inch.
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


def by_seed(values):
    return dict(enumerate(values))


def test_students_sleep_data_give_the_published_t():
    found = from_differences(SLEEP)
    assert found.estimate == pytest.approx(1.58)
    assert found.estimate / found.error == pytest.approx(4.0621, abs=1e-4)
    assert found.p() == pytest.approx(0.00283, abs=1e-5)
    assert found.interval() == pytest.approx((0.7001, 2.4599), abs=1e-4)


def test_fishers_maize_gives_the_published_t_and_permutation_p():
    found = from_differences([float(x) for x in MAIZE])
    assert found.estimate / found.error == pytest.approx(2.148, abs=1e-3)
    # Fisher counts 1726 of 2^15 flips; drawn flips scatter by sqrt(p / 10,000) = 0.0022.
    assert found.flips == pytest.approx(1726 / 2**15, abs=0.007)


def test_sign_flips_are_counted_exactly_for_few_seeds():
    assert sign_flip_p([1.0, 1.0, 1.0]) == 2 / 8
    assert sign_flip_p([0.0] * 4) == 1.0
    assert sign_flip_p([1.0] * MOST_ENUMERATED) == 2 ** (1 - MOST_ENUMERATED)
    assert sign_flip_p([3.0, 1.0, -2.0]) == 6 / 8  # sums 6, 2, 4, 0 and their opposites
    assert from_differences([1.0, 2.0, 3.0, 4.0, 5.0]).flips is None  # five: least p is 0.0625
    assert from_differences([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).flips == 2 / 64


def test_common_effects_of_seeds_do_not_enter_the_error():
    luck = {0: 0.3, 1: -0.2, 2: 0.1, 3: 0.0}
    a = {seed: 1.0 + x for seed, x in luck.items()}
    b = {seed: 0.9 + x + 0.001 * (-1) ** seed for seed, x in luck.items()}
    found = paired(a, b)
    assert found.estimate == pytest.approx(0.1)
    assert found.error < 0.001 < 0.1 * welch(list(a.values()), list(b.values())).error


def test_pairing_takes_the_seeds_that_both_have():
    found = paired({0: 1.0, 1: 2.0, 5: 9.0}, {1: 1.0, 0: 0.5, 7: 3.0})
    assert (found.estimate, found.n, found.freedom) == (0.75, 2, 1)


def test_welch_follows_its_formula_on_the_published_example():
    # NIST/SEMATECH e-handbook 7.3.1-like data: unequal numbers and spreads.
    a, b = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0]
    found = welch(a, b)
    va = sum((x - sum(a) / 6) ** 2 for x in a) / 5 / 6
    vb = sum((x - sum(b) / 8) ** 2 for x in b) / 7 / 8
    assert found.error == pytest.approx(math.sqrt(va + vb))
    assert found.freedom == pytest.approx((va + vb) ** 2 / (va**2 / 5 + vb**2 / 7))
    assert not found.paired
    equal = welch([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert equal.freedom == pytest.approx(4)  # equal spreads: n1 + n2 - 2


def test_a_difference_of_differences_is_taken_per_seed():
    samples = {"a": by_seed([1.0, 2.0]), "b": by_seed([0.5, 1.4]), "c": by_seed([3.0, 3.0])}
    found = contrast({"a": 1.0, "b": -1.0, "c": 2.0}, samples)
    assert found.estimate == pytest.approx((6.5 + 6.6) / 2)
    assert found.error == pytest.approx(0.05)


def test_one_seed_decides_nothing():
    found = paired({0: 1.0}, {0: 9.0})
    assert found.error is None
    assert found.interval() == (-math.inf, math.inf)
    assert found.p() == found.p_equivalent(100.0) == 1.0
    assert found.detectable() == found.provable_margin() == math.inf
    assert found.seeds_for(1.0) is None


def test_numbers_without_spread_are_taken_as_exact():
    zero, off = from_differences([0.0, 0.0]), from_differences([0.5, 0.5])
    assert (zero.p(), off.p(), zero.p(0.1)) == (1.0, 0.0, 0.0)
    assert (zero.p_equivalent(0.1), off.p_equivalent(0.1)) == (0.0, 1.0)
    assert off.interval() == (0.5, 0.5)


def test_equality_is_shown_where_the_90_percent_interval_lies_inside_the_margin():
    found = from_differences([0.001, -0.002, 0.003, 0.0, 0.002])
    low, high = found.interval(0.10)
    edge = max(abs(low), abs(high))
    assert found.p_equivalent(edge) == pytest.approx(0.05, rel=1e-9)
    assert found.p_equivalent(1.01 * edge) < 0.05 < found.p_equivalent(0.99 * edge)
    with pytest.raises(ValueError, match="margin must be > 0, got 0"):
        found.p_equivalent(0)


# Statistics of the specification: minimum effects in standard deviations of a difference.
@pytest.mark.parametrize(("n", "effect"), [(4, 2.08), (6, 1.42), (8, 1.15), (12, 0.88), (16, 0.75)])
def test_detectable_effects_shrink_with_seeds_as_stated(n, effect):
    values = [NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]
    found = from_differences(values)
    assert found.detectable() / (found.error * math.sqrt(n)) == pytest.approx(effect, abs=0.012)


def test_seeds_for_an_effect_are_those_from_which_it_is_detectable():
    found = from_differences([0.01, 0.03, -0.02, 0.02])
    scatter = found.error * 2
    assert found.seeds_for(1.16 * scatter) == 8
    assert found.seeds_for(2.09 * scatter) == 4
    assert found.seeds_for(0.0) is None
    assert found.seeds_for(1e-6 * scatter) is None


@pytest.mark.parametrize("values", [[], [math.nan, 1.0], [math.inf]])
def test_differences_must_be_finite_numbers(values):
    with pytest.raises(ValueError, match="one finite number per seed"):
        from_differences(values)


def test_arms_without_common_seeds_cannot_be_paired():
    with pytest.raises(ValueError, match="share no seed"):
        paired({0: 1.0}, {1: 1.0})
    with pytest.raises(ValueError, match="finite numbers of both arms"):
        welch([], [1.0])
