"""Student's t: published quantiles, closed forms, symmetry, and what is refused."""

import math

import pytest

from polarlight.lab.statistics.student import cdf, quantile, two_sided_p

# Any printed table of Student's t: two-sided 0.05 and 0.01 by degrees of freedom.
TABLE = {1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 5: (2.571, 4.032)}
TABLE |= {11: (2.201, 3.106), 30: (2.042, 2.750), 120: (1.980, 2.617)}


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_are_those_of_printed_tables(freedom):
    at_95, at_99 = TABLE[freedom]
    assert quantile(0.975, freedom) == pytest.approx(at_95, abs=5.1e-4)
    assert quantile(0.995, freedom) == pytest.approx(at_99, abs=5.1e-4)


@pytest.mark.parametrize("t", [1e-6, 0.3, 1.0, 4.0, 1e3, 1e8])
def test_one_and_two_degrees_of_freedom_have_closed_forms(t):
    cauchy = 2 * math.atan2(1, t) / math.pi
    assert two_sided_p(t, 1) == pytest.approx(cauchy, rel=1e-10)
    root = math.sqrt(2 + t * t)
    two = 2 / (root * (root + t))  # 1 - t / sqrt(2 + t^2), without cancellation
    assert two_sided_p(t, 2) == pytest.approx(two, rel=1e-10)


def test_many_degrees_of_freedom_approach_the_normal_law():
    for t in (0.5, 1.96, 4.0):
        normal = math.erfc(t / math.sqrt(2))
        assert two_sided_p(t, math.inf) == normal
        assert two_sided_p(t, 1e7) == pytest.approx(normal, rel=1e-5)


def test_quantile_inverts_the_distribution_and_is_odd():
    for freedom in (1, 2.5, 7, 400):
        for p in (1e-6, 0.2, 0.5, 0.9, 1 - 1e-6):
            assert cdf(quantile(p, freedom), freedom) == pytest.approx(p, rel=1e-9)
        assert quantile(0.1, freedom) == -quantile(0.9, freedom)
    assert two_sided_p(math.inf, 3) == 0


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, math.nan])
def test_a_probability_outside_its_range_is_refused(p):
    with pytest.raises(ValueError, match="p must lie strictly between 0 and 1"):
        quantile(p, 3)


def test_arguments_without_meaning_are_refused():
    for t, freedom in ((1.0, 0), (math.nan, 3)):
        with pytest.raises(ValueError, match="takes freedom > 0"):
            two_sided_p(t, freedom)
