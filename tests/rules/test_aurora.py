"""Aurora: which matrices it balances."""

from dataclasses import replace

import pytest
import torch

import polarlight
from polarlight.rules import BalancedPolar
from polarlight.stages import Side
from tests.matrices import SQUARE, TALL, WIDE, many_skewed, skewed
from tests.rules.measures import spread
from tests.rules.trajectory import EXACT

RELEASE = BalancedPolar(EXACT, rounds=2, exponent=0.5)
LEVEL = replace(RELEASE, rounds=60)


def direction(side, shape):
    return polarlight.rules.aurora(RELEASE, side=side).direction(skewed(*shape), {})


PLAIN = [(Side.TALL, WIDE), (Side.WIDE, TALL), *((side, SQUARE) for side in Side)]


@pytest.mark.parametrize(("side", "shape"), PLAIN)
def test_matrices_of_other_sides_get_muon(side, shape):
    muon = polarlight.rules.muon(polar=EXACT).direction(skewed(*shape), {})
    assert torch.equal(direction(side, shape), muon)


@pytest.mark.parametrize("side", [Side.WIDE, Side.LONG_AXIS])
def test_wide_matrices_are_the_transposed_tall_problem(side):
    expected = RELEASE(skewed(*WIDE).mT).mT
    assert torch.equal(direction(side, WIDE), expected)


@pytest.mark.parametrize("side", [Side.WIDE, Side.LONG_AXIS])
def test_the_columns_of_wide_matrices_are_balanced(side):
    rule = polarlight.rules.aurora(LEVEL, side=side)
    # Worst of ten seeds 2e-11; the polar factor alone 1.3.
    assert spread(rule.direction(many_skewed(*WIDE), {}).mT).max() < 1e-9


@pytest.mark.parametrize("side", [Side.TALL, Side.LONG_AXIS])
def test_tall_matrices_are_balanced(side):
    rule = polarlight.rules.aurora(RELEASE, side=side, scale=polarlight.stages.Unscaled())
    assert torch.equal(rule.direction(skewed(*TALL), {}), RELEASE(skewed(*TALL)))
