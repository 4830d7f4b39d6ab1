"""Schedules: what each does to one singular value, against the figures of their sources."""

import re

import pytest

from polarlight.linalg.coefficients import (
    DEEPSEEK_V4,
    JORDAN,
    POLAR_EXPRESS_PUBLISHED,
    SIMPLE_QUINTIC,
    YOU,
    Schedule,
)
from polarlight.linalg.polar_express import best_quintic, polar_express


def band(schedule, low, points=2000):
    """Least and greatest output for sigma in [low, 1], sampled evenly on a log axis."""
    outputs = [schedule(low ** (1 - i / points)) for i in range(points + 1)]
    return min(outputs), max(outputs)


@pytest.mark.parametrize(
    ("schedule", "low", "least", "greatest"),
    [
        (JORDAN, 1.6e-3, 0.68, 1.203),
        (YOU, 5.2e-3, 0.9, 1.145),
        (SIMPLE_QUINTIC, 1e-3, 0.999, 1.002),
        (DEEPSEEK_V4, 1.1e-5, 0.7, 1.003),
        (polar_express(5), 1e-3, 0.82, 1.17),
        (polar_express(6), 6.8e-4, 0.9, 1.1),
    ],
)
def test_band_of_singular_values(schedule, low, least, greatest):
    low_out, high_out = band(schedule, low)
    assert least <= low_out <= high_out <= greatest


@pytest.mark.parametrize(
    ("schedule", "slope"),
    [(JORDAN, 484.9), (YOU, 492.7), (SIMPLE_QUINTIC, 4096), (DEEPSEEK_V4, 79263)],
)
def test_slope_at_zero(schedule, slope):
    assert schedule.slope == pytest.approx(slope, rel=1e-3)
    assert schedule(1e-9) == pytest.approx(1e-9 * slope, rel=1e-3)


def test_generated_polar_express_is_the_published_one():
    generated = polar_express(len(POLAR_EXPRESS_PUBLISHED), safety=1.0)
    for ours, published in zip(generated.steps, POLAR_EXPRESS_PUBLISHED, strict=True):
        # The table's last step is the limit that the seventh has not quite reached: 4e-9 apart.
        assert ours == pytest.approx(published, abs=1e-8)


def test_safety_factor_costs_slope_and_keeps_values_above_one_inside():
    assert polar_express(5).slope == pytest.approx(976, rel=1e-3)
    assert polar_express(5)(1.01) < 1.1
    assert polar_express(5, safety=1.0)(1.02) > 2


@pytest.mark.parametrize("low", [1e-4, 1e-2, 0.3, 0.9])
def test_best_quintic_equioscillates(low):
    a, b, c = best_quintic(low, 1.0)
    errors = [
        1 - x * (a + b * x**2 + c * x**4) for x in [low + (1 - low) * i / 5000 for i in range(5001)]
    ]
    signs = [errors[0]]
    for e in errors:
        if e * signs[-1] < 0:
            signs.append(e)
        elif abs(e) > abs(signs[-1]):
            signs[-1] = e
    # Four alternating extrema of equal height: Chebyshev's criterion; the grid misses 1e-6 of them.
    assert len(signs) == 4
    assert [abs(e) for e in signs] == pytest.approx([abs(signs[0])] * 4, rel=1e-4, abs=1e-12)


def test_composition_beats_any_single_interval_choice():
    best = band(polar_express(5, safety=1.0, cushion=0.0), 1e-3)
    for schedule in (JORDAN, YOU):
        low, high = band(schedule, 1e-3)
        assert high / low > best[1] / best[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"lower": 0.0}, "lower must lie in (0, 1), got 0.0"),
        ({"lower": 1.0}, "lower must lie in (0, 1), got 1.0"),
        ({"safety": 0.9}, "safety must be >= 1, got 0.9"),
        ({"cushion": 1.0}, "cushion must lie in [0, 1), got 1.0"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        polar_express(**arguments)


def test_a_schedule_needs_steps_and_a_safety_of_at_least_one():
    with pytest.raises(ValueError, match="at least one step"):
        Schedule(name="none", steps=(), source="here")
    with pytest.raises(ValueError, match=r"safety must be >= 1, got 0\.5"):
        Schedule(name="unsafe", steps=((1, 0, 0),), safety=0.5, source="here")
