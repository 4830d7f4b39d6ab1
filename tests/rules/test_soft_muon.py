"""Soft-Muon and its interpolation: the float64 reference, the published values of its curve."""

from functools import partial

import pytest
import torch

from polarlight.linalg.weighted_iterates import SOFT, WeightedIterates
from polarlight.rules import contra_muon, contra_soft_muon, soft_muon
from polarlight.stages.ramp import Ramp
from tests.matrices import SHAPES, skewed
from tests.oracle import A, updates
from tests.reference import soft_muon as reference
from tests.rules.trajectory import EXACT, ROUNDING, distance


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape):
    assert distance(soft_muon(), reference.step, shape) < ROUNDING


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("b", [0.0, 0.5, 0.8])
def test_the_interpolation_follows_the_reference(shape, b):
    rule = contra_soft_muon(weight=b, polar=EXACT)
    assert distance(rule, partial(reference.interpolated_step, b=b), shape) < ROUNDING


@pytest.mark.parametrize(
    ("sigma", "expected"), [(0.5, 0.9332), (0.1, 0.7942), (0.01, 0.6257), (0.001, 0.3200)]
)
def test_the_curve_has_the_published_values(sigma, expected):
    assert WeightedIterates().weighted(sigma) == pytest.approx(expected, abs=5.1e-5)


def test_the_curve_is_a_tenth_power_above_a_hundredth():
    assert sum(SOFT) == pytest.approx(1, abs=1e-9)
    for i in range(1, 101):
        assert WeightedIterates().weighted(i / 100) == pytest.approx((i / 100) ** 0.1, abs=0.01)


def test_the_schatten_norm_is_that_of_a_polar_factor():
    for shape in SHAPES:
        D = WeightedIterates()(skewed(*shape))
        assert torch.linalg.svdvals(D).pow(4).sum().item() == pytest.approx(min(shape))


def test_before_the_ramp_it_is_contra_muon():
    ramp = contra_soft_muon(weight=Ramp(0.0, 0.8, 2500, 2908), polar=EXACT)
    for ours, theirs in zip(
        updates(ramp, A, A), updates(contra_muon(polar=EXACT), A, A), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_weights_without_a_first_one_or_without_quintics_are_refused():
    with pytest.raises(ValueError, match="the first one > 0"):
        WeightedIterates((0.0, 1.0))
    with pytest.raises(ValueError, match="14 weights need 13 quintics, got 12"):
        WeightedIterates((1.0,) * 14)
