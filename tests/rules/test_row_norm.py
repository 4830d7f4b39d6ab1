"""RowNorm: the reference, plain and centred; what it ignores; tokens that were seen once."""

from functools import partial

import pytest
import torch

import polarlight
from polarlight import rules
from polarlight.stages.centre import centred
from polarlight.stages.orientation import Columns, oriented
from tests.matrices import SHAPES, TALL, gaussian, skewed
from tests.reference import row_norm
from tests.rules.trajectory import FLOOR, NO_FLOOR, ROUNDING, distance

UNSCALED = rules.row_norm(scale=polarlight.stages.Unscaled())


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape):
    assert distance(rules.row_norm(floor=NO_FLOOR), row_norm.step, shape) < ROUNDING
    assert distance(rules.row_norm(), row_norm.step, shape) < FLOOR


@pytest.mark.parametrize("shape", SHAPES)
def test_centred_steps_follow_the_reference(shape):
    rule = centred(rules.row_norm(floor=NO_FLOOR))
    assert distance(rule, partial(row_norm.step, centred=True), shape) < ROUNDING


@pytest.mark.parametrize("shape", SHAPES)
def test_columns_are_the_rows_of_the_transpose(shape):
    rule = oriented(rules.row_norm(), Columns())
    M = skewed(*shape)
    torch.testing.assert_close(rule.direction(M, {}), rules.row_norm().direction(M.mT, {}).mT)
    assert rule.scale(3, 5) == rules.row_norm().scale(5, 3)


def test_rows_have_one_length_and_zero_rows_stay_zero():
    M = gaussian(*TALL)
    M[3] = 0
    norms = UNSCALED.direction(M, {}).norm(dim=-1)
    assert norms[3] == 0
    others = torch.cat([norms[:3], norms[4:]])
    torch.testing.assert_close(others, torch.ones_like(others), rtol=1e-6, atol=0)


def test_centred_columns_sum_to_zero_and_a_shared_shift_is_not_seen():
    rule, M = centred(UNSCALED), gaussian(*TALL)
    U = rule.direction(M, {})
    assert U.sum(dim=0).abs().max() < 1e-13
    shifted = rule.direction(M + gaussian(1, TALL[1], seed=5), {})
    torch.testing.assert_close(shifted, U, rtol=1e-9, atol=1e-12)
    assert (U.norm(dim=-1) - 1).abs().max() > 1e-3  # the second projection, not unit rows, wins


def test_a_single_centred_row_has_nothing_left():
    assert centred(rules.row_norm()).direction(gaussian(1, 5), {}).abs().max() == 0


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_the_size_of_gradients_does_not_matter(factor):
    M = gaussian(*TALL, dtype=torch.float32)
    rule = rules.row_norm()
    torch.testing.assert_close(rule.direction(factor * M, {}), rule.direction(M, {}))


def test_a_row_that_decays_keeps_moving_until_it_meets_the_floor():
    M = torch.ones(4, 8, dtype=torch.float64)
    lengths = []
    for factor in (1e-2, 1e-6):
        M[0] = factor
        lengths.append(UNSCALED.direction(M, {})[0].norm().item())
    assert lengths[0] == pytest.approx(1, rel=1e-3)
    assert lengths[1] < 0.02


@pytest.mark.parametrize("rms", [0.0, -0.2, float("nan")])
def test_an_invalid_size_raises(rms):
    with pytest.raises(ValueError, match="rms must be > 0"):
        rules.RowRms(rms)
