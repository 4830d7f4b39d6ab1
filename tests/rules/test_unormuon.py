"""U-NorMuon: the reference, Muon where nothing is tall, and the row norm of its name."""

from functools import partial
from math import sqrt

import pytest
import torch

import polarlight
from tests.matrices import SHAPES, SQUARE, TALL, WIDE, skewed
from tests.reference import unormuon
from tests.rules.trajectory import EXACT, ROUNDING, distance, polars


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape, nesterov):
    rule = polarlight.rules.unormuon(nesterov=nesterov, polar=EXACT)
    assert distance(rule, partial(unormuon.step, nesterov=nesterov), shape) < ROUNDING


@pytest.mark.parametrize("shape", [WIDE, SQUARE])
def test_wide_and_square_matrices_get_muon_and_no_memory(shape):
    rule, M = polarlight.rules.unormuon(polar=EXACT), skewed(*shape)
    assert rule.buffer_shapes(M.shape) == polarlight.rules.muon().buffer_shapes(M.shape)
    assert torch.equal(rule.direction(M, {}), polarlight.rules.muon(polar=EXACT).direction(M, {}))


def test_without_memory_tall_rows_have_the_norm_of_an_equal_share():
    rule = polarlight.rules.unormuon(beta2=0.0, polar=EXACT, scale=polarlight.stages.Unscaled())
    memory = {"row_second_moment": torch.zeros(24, 1, dtype=torch.float64)}
    norms = rule.direction(skewed(*TALL), memory).norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, sqrt(6 / 24)))  # default: 1e-7


@polars
def test_a_zero_row_stays_zero(polar):
    rule = polarlight.rules.unormuon(polar=polar)
    memory = {"row_second_moment": torch.zeros(24, 1, dtype=torch.float64)}
    M = skewed(*TALL)
    M[3] = 0
    D = rule.direction(M, memory)
    assert not D[3].any()
    assert (D.norm(dim=-1) > 0).sum() == 23
