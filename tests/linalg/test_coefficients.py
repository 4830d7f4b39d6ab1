"""Schedules: what each does to one singular value, against the figures of their sources."""

import re

import pytest
import torch

from polarlight.linalg.coefficients import (
    CANS,
    CANS_PUBLISHED,
    CUBIC,
    CUBIC5,
    CUBIC5_PUBLISHED,
    DEEPSEEK_V4,
    JORDAN,
    PADE_QUINTIC,
    SIMPLE_QUINTIC,
    TURBO_MUON,
    YOU,
    Schedule,
)
from polarlight.linalg.polar_express import (
    MODDED_NANOGPT,
    best_cubic,
    best_quintic,
    polar_express,
    polar_express_listing,
)

POLAR_EXPRESS_PUBLISHED = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845749733, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
"""Amsel et al., "The Polar Express" (2025), arXiv 2505.16932: from 1e-3, no safety factor."""

MODDED_NANOGPT_PUBLISHED = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""modded-nanogpt (2025): Polar Express for lower bound 1e-3, cushion 0.02, safety 1.02."""


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
        (CUBIC, 1.9e-3, 0.7, 1.0),
        (PADE_QUINTIC, 4.4e-4, 0.7, 1.001),
        (CANS, 1e-3, 0.85, 1.12),
        (TURBO_MUON, 1e-2, 0.76, 1.09),
        (CUBIC5, 6.6e-3, 0.7, 1.301),
        (MODDED_NANOGPT, 1e-3, 0.84, 1.15),
        (polar_express(5), 1e-3, 0.82, 1.17),
        (polar_express(6), 6.8e-4, 0.9, 1.1),
    ],
)
def test_band_of_singular_values(schedule, low, least, greatest):
    low_out, high_out = band(schedule, low)
    assert least <= low_out <= high_out <= greatest


@pytest.mark.parametrize(
    ("schedule", "slope"),
    [
        (JORDAN, 484.9),
        (YOU, 492.7),
        (SIMPLE_QUINTIC, 4096),
        (DEEPSEEK_V4, 79263),
        (CUBIC, 437.9),
        (PADE_QUINTIC, 1888),
        (CANS, 1049 / 1.01**5),
        (TURBO_MUON, 104.06 / 1.2),
        (CUBIC5, 119.3 / 1.01**5),
        (MODDED_NANOGPT, 989.5 / 1.02),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_slope_at_zero(schedule, slope):
    assert schedule.slope == pytest.approx(slope, rel=1e-3)
    assert schedule(1e-9) == pytest.approx(1e-9 * slope, rel=1e-3)


def test_generated_polar_express_is_the_published_one():
    generated = polar_express(len(POLAR_EXPRESS_PUBLISHED), safety=1.0)
    for ours, published in zip(generated.steps, POLAR_EXPRESS_PUBLISHED, strict=True):
        # The table's last step is the limit that the seventh has not quite reached: 4e-9 apart.
        assert ours == pytest.approx(published, abs=1e-8)


def test_generated_modded_nanogpt_is_the_published_one():
    for ours, published in zip(MODDED_NANOGPT.steps, MODDED_NANOGPT_PUBLISHED, strict=True):
        assert ours == pytest.approx(
            published, abs=1e-9
        )  # float64 throughout, and a Remez iteration
    assert MODDED_NANOGPT.safety == 1.02


@pytest.mark.parametrize(
    ("schedule", "published"), [(CANS, CANS_PUBLISHED), (CUBIC5, CUBIC5_PUBLISHED)]
)
def test_a_stretched_schedule_is_the_published_one_seen_from_further_off(schedule, published):
    """Step by step p(x / 1.01), except the last, which meets the values where they are."""
    *first, last = schedule.steps
    for (a, b, c), (A, B, C) in zip(first, published, strict=False):
        assert (a * 1.01, b * 1.01**3, c * 1.01**5) == pytest.approx((A, B, C), rel=1e-14)
    assert last == published[-1]


def test_schedules_are_dangerous_as_published_and_safe_here():
    """Just above 1, where rounding puts a matrix of rank 1."""
    raw = {s.name: Schedule(name="raw", steps=p, source="published") for s, p in RAW}
    assert raw["cans x5"](1.004) > 1e6
    assert raw["cubic5"](1.006) < 0
    assert raw["turbo-muon x4"](1.0) < -0.9
    for schedule, _ in RAW:
        assert 0.6 < schedule(1.004) < 1.35


RAW = [(CANS, CANS_PUBLISHED), (CUBIC5, CUBIC5_PUBLISHED), (TURBO_MUON, TURBO_MUON.steps)]


@pytest.mark.parametrize("degree", [3, 5])
@pytest.mark.parametrize("lower", [0.9, 0.1, 1e-3, 1e-6])
@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_polar_express_meets_its_bound_for_any_interval(degree, lower, steps):
    schedule = polar_express(steps, lower=lower, degree=degree, safety=1.0, cushion=0.0)
    least, greatest = band(schedule, lower)
    # The convergence theorem of arXiv 2505.16932, and float64 rounding through the steps.
    bound = (1 - lower**2) ** (((degree + 1) // 2) ** steps) + 1e-12
    assert 1 - bound <= least <= greatest <= 1 + bound


@pytest.mark.parametrize("degree", [3, 5])
@pytest.mark.parametrize("lower", [1e-5, 1e-8, 1e-12])
def test_enough_steps_reach_one_from_anywhere(degree, lower):
    """The slope grows to 2 q + 1 per step, so that log(1 / lower) / log(slope) steps suffice."""
    schedule = polar_express(45 if degree == 3 else 32, lower=lower, degree=degree)
    least, greatest = band(schedule, lower)
    assert 1 - 1e-6 < least <= greatest < 1 + 1e-6
    assert all((c == 0) == (degree == 3) for _, _, c in schedule.steps)


@pytest.mark.parametrize("low", [1e-4, 1e-2, 0.3, 0.9])
def test_best_cubic_equioscillates(low):
    a, b, _ = best_cubic(low, 1.0)
    inner = (-a / (3 * b)) ** 0.5
    errors = [x * (a + b * x * x) - 1 for x in (low, inner, 1.0)]
    assert errors == pytest.approx([-errors[1], errors[1], -errors[1]], rel=1e-9)
    assert low < inner < 1


def test_schedules_have_different_names():
    made = [polar_express(5), polar_express(6), polar_express(5, degree=3), MODDED_NANOGPT]
    made.append(polar_express(5, lower=1e-5))
    assert len({s.name for s in made}) == len(made)


def test_coefficients_are_computed_on_the_host_under_any_default_device():
    with torch.device("meta"):
        assert polar_express(4, lower=3e-3).slope > 100


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
        ({"degree": 7}, "degree must be 3 or 5, got 7"),
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


@pytest.mark.parametrize("high", [0.5, 1.0, 1.7])
def test_a_quintic_of_one_point_is_one_there_and_flat(high):
    a, b, c = best_quintic(high, high)
    assert a * high + b * high**3 + c * high**5 == pytest.approx(1)
    assert a + 3 * b * high**2 + 5 * c * high**4 == pytest.approx(0, abs=1e-12)
    assert 6 * b * high + 20 * c * high**3 == pytest.approx(0, abs=1e-12)


def test_a_schedule_is_named_for_its_bound_unless_that_is_the_usual_one():
    assert " from " not in polar_express(5).name
    assert polar_express(5, lower=0.1).name.endswith(" from 0.1")


@pytest.mark.parametrize("degree", [3, 5])
def test_a_lower_bound_near_one_needs_one_step(degree):
    schedule = polar_express(1, lower=0.99, degree=degree, safety=1.0)
    assert all(abs(schedule(x / 1000) - 1) < 1e-3 for x in range(990, 1001))


@pytest.mark.parametrize("steps", [1, 3, 5, 7, 8, 10])
def test_the_papers_listing_stretches_all_of_its_polynomials_but_the_eighth(steps):
    listed = polar_express_listing(steps).steps
    for i, found in enumerate(listed):
        a, b, c = POLAR_EXPRESS_PUBLISHED[min(i, 7)]
        s = 1.01 if i < 7 else 1.0
        assert found == pytest.approx((a / s, b / s**3, c / s**5), rel=1e-8)


@pytest.mark.parametrize("steps", [4, 5, 6, 7])
def test_below_eight_steps_the_table_in_circulation_lifts_small_values_more(steps):
    """The default was chosen by slope, and by the least value from 1e-3 on."""
    listed, circulated = polar_express_listing(steps), polar_express(steps)
    assert listed.steps[:-1] == circulated.steps[:-1]
    assert circulated.slope == pytest.approx(1.01 * listed.slope)
    assert band(circulated, 1e-3)[0] > band(listed, 1e-3)[0]


def test_a_listing_without_steps_is_refused():
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        polar_express_listing(0)
