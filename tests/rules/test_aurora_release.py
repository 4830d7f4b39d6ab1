"""Aurora in the release's form: the reference, and equal leverages."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import polarlight
from polarlight.linalg.rows import shape_exponent
from polarlight.rules import BalancedPolar
from polarlight.stages import Side
from tests.matrices import SHAPES, TALL, gaussian, many_skewed, skewed
from tests.reference import aurora_release
from tests.rules.measures import spread
from tests.rules.trajectory import EXACT, FLOOR, NO_FLOOR, QUINTIC, ROUNDING, distance

RELEASE = BalancedPolar(EXACT, rounds=2, exponent=0.5)
LEVEL = replace(RELEASE, rounds=60)


@pytest.mark.parametrize(("floor", "tolerance"), [(NO_FLOOR, ROUNDING), (1e-4, FLOOR)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape, nesterov, floor, tolerance):
    rule = polarlight.rules.aurora(replace(RELEASE, floor=floor), nesterov=nesterov)
    reference = partial(aurora_release.step, nesterov=nesterov)
    assert distance(rule, reference, shape) < tolerance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rounds", "exponent"), [(1, 0.5), (3, 0.25), (5, 1.0)])
def test_the_long_axis_follows_the_reference(shape, rounds, exponent):
    solver = BalancedPolar(EXACT, rounds=rounds, exponent=exponent, floor=NO_FLOOR)
    reference = partial(aurora_release.step, long_axis=True, rounds=rounds, exponent=exponent)
    assert (
        distance(polarlight.rules.aurora(solver, side=Side.LONG_AXIS), reference, shape) < ROUNDING
    )


# Standard deviation over mean of the leverages on ten skewed 24 x 6 matrices, worst (median):
# polar 1.3 (1.1); rounds 1: 0.53 (0.48), 2: 0.21 (0.18), 3: 0.10 (0.08), 5: 0.030 (0.017),
# 10: 2e-3 (9e-4), 20: 2e-5 (2e-6), 50: 5e-11. The bounds are twice the worst.
@pytest.mark.parametrize(("rounds", "bound"), [(1, 1.1), (2, 0.42), (5, 0.06), (20, 4e-5)])
def test_leverages_are_equal_to_the_stated_accuracy(rounds, bound):
    assert spread(replace(RELEASE, rounds=rounds)(many_skewed(*TALL))).max() < bound


# The same with the exponent from the shape, 0.67 at 4:1. Worst (median) at rounds 2: 0.14 (0.12),
# 5: 9e-3 (5e-3), 10: 2e-4 (5e-5), 20: 2e-7 (1e-8).
@pytest.mark.parametrize(("rounds", "gain"), [(2, 1.2), (5, 2), (10, 5), (20, 20)])
def test_the_exponent_of_the_shape_contracts_faster_at_four_to_one(rounds, gain):
    M = many_skewed(*TALL)
    release = spread(replace(RELEASE, rounds=rounds)(M))
    # Smallest gain of ten seeds: 1.4, 2.8, 8.8, 40.
    assert (release / spread(BalancedPolar(EXACT, rounds, exponent=None)(M))).min() > gain


@pytest.mark.parametrize(("shape", "exponent"), [((24, 6), 2 / 3), ((24, 12), 1.0), ((9, 8), 1.0)])
def test_the_exponent_of_the_shape_follows_the_reference(shape, exponent):
    solver = BalancedPolar(EXACT, rounds=4, exponent=None, floor=NO_FLOOR)
    reference = partial(aurora_release.step, rounds=4, exponent=exponent)
    assert distance(polarlight.rules.aurora(solver), reference, shape) < ROUNDING


def test_the_exponent_of_the_shape_cancels_the_mean_error_mode():
    assert shape_exponent(24, 6) == pytest.approx(2 / 3)
    assert shape_exponent(2, 1) == shape_exponent(9, 8) == 1.0


def test_positive_row_rescaling_changes_nothing_at_the_fixed_point():
    M = many_skewed(*TALL)
    rescaled = gaussian(24, 1, seed=5).exp() * M
    # What is left is the floor: rows at 1e-2 of the rms count for 1 - (1e-4 / 1e-2)^4, and the
    # smallest row of ten seeds, rescaled, lies at 3e-3. Worst 1.1e-7.
    torch.testing.assert_close(LEVEL(rescaled), LEVEL(M), rtol=0, atol=1e-6)


def test_one_round_is_the_row_form_of_muoneq():
    M = skewed(*TALL)
    expected = EXACT(polarlight.stages.EquilibrateRows()(M))
    torch.testing.assert_close(replace(RELEASE, rounds=1)(M), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("zeros", [1, 4, 12])
def test_zero_rows_stay_zero_and_the_others_have_equal_norms(zeros):
    M = skewed(*TALL)
    M[:zeros] = 0
    U = replace(LEVEL, polar=QUINTIC, rounds=100)(M)
    shares = U[zeros:].square().sum(dim=-1)
    assert not U[:zeros].any()
    # Converged; twelve live rows of six are 2:1, where a round halves the error: worst 1e-12.
    torch.testing.assert_close(shares, torch.full_like(shares, 6 / (24 - zeros)))
