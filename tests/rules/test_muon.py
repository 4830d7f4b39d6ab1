"""Muon: the float64 reference, the singular values, and the indifference to the momentum's form."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import polarlight
from tests.matrices import SHAPES, gaussian, skewed
from tests.reference import muon
from tests.rules.trajectory import EXACT, ROUNDING, distance


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape, nesterov):
    rule = polarlight.rules.muon(nesterov=nesterov, polar=EXACT)
    assert distance(rule, partial(muon.step, nesterov=nesterov), shape) < ROUNDING


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_heavy_ball_takes_the_same_steps(shape, nesterov):
    rule = polarlight.rules.muon(nesterov=nesterov, polar=EXACT)
    rule = replace(rule, momentum=polarlight.stages.HeavyBall(nesterov))
    assert distance(rule, partial(muon.step, nesterov=nesterov), shape) < ROUNDING


@pytest.mark.parametrize(("shape", "size"), [((24, 6), 2.0), ((6, 24), 1.0), ((8, 8), 1.0)])
def test_all_singular_values_are_the_scale(shape, size):
    sigma = torch.linalg.svdvals(polarlight.rules.muon(polar=EXACT).direction(skewed(*shape), {}))
    torch.testing.assert_close(sigma, torch.full_like(sigma, size))  # float64 default: 1e-7


def test_the_polar_method_is_the_one_given():
    quintic = polarlight.linalg.NewtonSchulz(polarlight.linalg.schedules.JORDAN)
    M = gaussian(24, 6)
    assert torch.equal(polarlight.rules.muon(polar=quintic).direction(M, {}), 2 * quintic(M))
