"""Gram Newton-Schulz: the plain form's result, with restarts where the schedule needs them."""

import pytest
import torch

from polarlight.linalg.auto import QUICK
from polarlight.linalg.coefficients import (
    CUBIC5,
    JORDAN,
    YOU,
    Schedule,
)
from polarlight.linalg.gram import (
    CONDITION,
    GROWTH,
    HALF_SAFE,
    LAST_NOISE,
    NOISE,
    GramNewtonSchulz,
    condition_limit,
    growth_limit,
    restart_positions,
    segment_growth,
    segment_noise,
)
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import AOL, Frobenius
from polarlight.linalg.polar_express import MODDED_NANOGPT, polar_express
from tests.linalg.spectra import error, known
from tests.linalg.test_engines import OVERSHOOT, SCHEDULES
from tests.matrices import gaussian

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)


def pair(schedule, dtype):
    """Both forms of one schedule."""
    kind = {"dtype": dtype, "normalisation": schedule.normalisation}
    return GramNewtonSchulz(schedule, **kind), NewtonSchulz(schedule, **kind)


@pytest.mark.in_turn(3, "schedule", "dtype", "name")
@schedules
@pytest.mark.parametrize("name", ["flat", "power law", "1e2", "1e3"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Half precision: eps 1e-3 against a least singular value of 1e-3, and the plain form errs as
    # much. Otherwise the growth limit, 512 eps: eigenvalues are squares, rounded, then raised.
    [(torch.float16, 0.1), (torch.float32, 2e-4), (torch.float64, 4e-13)],
    ids=str,
)
def test_both_forms_agree_up_to_condition_1000(schedule, name, dtype, tolerance):
    gram, plain = pair(schedule, dtype)
    for shape in ((96, 24), (24, 96)):
        M = known(name, *shape).M
        assert error(gram(M), plain(M).double()) < tolerance


@pytest.mark.in_turn(4, "schedule", "dtype", "name")
@schedules
@dtypes
@pytest.mark.parametrize("name", ["power law", "1e3", "rank 1", "half rank"])
def test_no_schedule_runs_away(schedule, dtype, name):
    """Noise in null directions is amplified, as in the plain form, but never beyond the rest."""
    gram, _ = pair(schedule, dtype)
    U = gram(known(name, 96, 24).M)
    # Schedules exceed 1 by 0.3 themselves; bfloat16 adds its rounding of a condition up to 200.
    excess = torch.linalg.matrix_norm(U, 2) - 1
    assert excess < (2.4 if dtype == torch.bfloat16 else OVERSHOOT)


def test_without_restarts_half_precision_is_lost():
    M = known("1e3", 96, 24).M
    exact = NewtonSchulz(HALF_SAFE)(M)
    lost = GramNewtonSchulz(dtype=torch.float16, restarts=())(M)
    assert not error(lost, exact) < 0.5
    assert error(GramNewtonSchulz(dtype=torch.float16)(M), exact) < 5e-2


def test_float32_restarts_are_those_that_others_found_by_trial_for_float16():
    """Dao et al. restart five Polar Express steps after the second: blocks drive that to 4."""
    assert restart_positions(polar_express(5), torch.float32) == (2,)
    assert restart_positions(HALF_SAFE, torch.float16) == (1, 3)
    assert restart_positions(MODDED_NANOGPT, torch.float16) == (1, 3)
    assert restart_positions(polar_express(5), torch.float16) == (1, 2, 3)
    assert restart_positions(QUICK, torch.bfloat16) == (1, 2)


def fits(segment, dtype, last):
    noise = segment_noise(segment, dtype) <= (LAST_NOISE if last else NOISE)
    return noise and segment_growth(segment, dtype) <= growth_limit(dtype)


def test_noise_is_an_epsilon_times_the_squared_slopes_of_all_steps_but_the_last():
    steps = [(3.0, -4.0, 2.0), (2.0, -1.5, 0.5), (7.0, 0.0, 0.0)]
    assert segment_noise(steps, torch.float16) == pytest.approx(36 * 2.0**-10)
    assert segment_noise(steps[:1], torch.float16) == 0


@schedules
@dtypes
def test_derived_segments_keep_to_the_limits_and_could_not_be_fewer(schedule, dtype):
    engine = GramNewtonSchulz(schedule, normalisation=schedule.normalisation)
    segments = engine.segments(dtype)
    assert sum(segments, ()) == schedule.steps
    for i, segment in enumerate(segments, 1):
        assert fits(segment, dtype, last=i == len(segments))
    # Taking as many steps as possible each time is one way to cut; no other needs fewer restarts.
    greedy, steps = 0, schedule.steps
    while steps:
        lengths = range(1, len(steps) + 1)
        longest = max(i for i in lengths if fits(steps[:i], dtype, last=i == len(steps)))
        greedy, steps = greedy + 1, steps[longest:]
    assert len(segments) <= greedy


def test_growth_is_that_of_an_eigenvalue_just_below_zero():
    """To first order, for two steps p(r) = a + b r: q = p(r) p(r p^2), q'/q = (1 + a^2) b / a."""
    a, b = 2.0, -1.5
    shift = 0.41 * torch.finfo(torch.float32).eps
    growth = segment_growth([(a, b, 0.0)] * 2, torch.float32)
    assert growth == pytest.approx((1 + a * a) * -b / a * shift, rel=1e-3)
    assert segment_growth([(a, b, 0.0)], torch.float32) == 0
    assert segment_growth([(3.0, -4.0, 2.0)] * 5, torch.float64) == float("inf")
    assert CONDITION < 3**5


def test_a_polynomial_with_a_zero_gets_no_long_segments():
    touching = Schedule(name="touching", steps=((4.1, -8.2, 4.1),) * 5, source="Kaon")
    assert restart_positions(touching, torch.float16) == (1, 2, 3, 4)


def test_given_restarts_are_used():
    M = gaussian(60, 12, dtype=torch.float32)
    for restarts in ((), (1,), (1, 2, 4)):
        engine = GramNewtonSchulz(CUBIC5, restarts=restarts)
        assert [len(s) for s in engine.segments(torch.float32)] == {
            (): [5],
            (1,): [1, 4],
            (1, 2, 4): [1, 1, 2, 1],
        }[restarts]
        plain = NewtonSchulz(CUBIC5, torch.float32)
        torch.testing.assert_close(engine(M), plain(M), rtol=0, atol=1e-4)


@pytest.mark.parametrize("restarts", [(0,), (5,), (3, 2), (2, 2)])
def test_restarts_out_of_order_are_refused(restarts):
    with pytest.raises(ValueError, match=r"restarts must increase within 1 \.\. 4, got"):
        GramNewtonSchulz(JORDAN, restarts=restarts)


def test_float16_input_and_result_stay_float16():
    M = gaussian(40, 8).half()
    U = GramNewtonSchulz(dtype=torch.float16)(M)
    assert U.dtype == torch.float16
    assert error(U, NewtonSchulz(HALF_SAFE)(M.double())) < 2e-2


def test_normalisations_serve_both_forms():
    M = gaussian(50, 10)
    for normalisation in (Frobenius(), AOL()):
        gram = GramNewtonSchulz(YOU, normalisation=normalisation)
        torch.testing.assert_close(
            gram(M), NewtonSchulz(YOU, normalisation=normalisation)(M), rtol=0, atol=1e-12
        )


def test_limits_follow_the_precision_and_end_where_rounding_would_take_over():
    eps = torch.finfo(torch.float32).eps
    assert growth_limit(torch.float32) == GROWTH * eps < 0.5
    assert growth_limit(torch.bfloat16) == 0.5
    assert condition_limit(torch.float64) == condition_limit(torch.float32) == CONDITION
    assert condition_limit(torch.bfloat16) == pytest.approx(0.2 * 2**7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_wide_matrix_is_mapped_as_exactly_as_its_transpose(dtype):
    """The steps of a segment meet either in their order; the other order errs thrice as much."""
    U, V = (torch.linalg.qr(gaussian(side, 64, seed=side)).Q for side in (256, 64))
    sigma = torch.arange(1, 65, dtype=torch.float64) ** -1.0
    sigma[1:] *= 0.5
    M = (U * sigma @ V.mT).float()
    exact = NewtonSchulz(polar_express(4), torch.float64)(M.double())
    engine = GramNewtonSchulz(polar_express(4), dtype, restarts=(2,))
    tall, wide = (M.double().mT @ (D - exact) for D in (engine(M), engine(M.mT).mT))
    assert wide.norm() < 1.5 * tall.norm()
