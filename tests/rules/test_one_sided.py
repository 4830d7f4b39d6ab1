"""One-sided polar factors: the reference, equality of sides, centring, damping, nuclear norms."""

from functools import partial

import numpy as np
import pytest
import torch

import polarlight
from polarlight import rules
from polarlight.linalg.nuclear import NuclearPolar
from polarlight.linalg.one_sided import GramSide, OneSidedPolar
from polarlight.stages.centre import centred
from tests.matrices import SHAPES, TALL, WIDE, gaussian, skewed
from tests.reference import one_sided
from tests.rules.trajectory import distance

EIGEN = 1e-9
"""Squaring costs half the digits: eps times the square of the momentum's condition."""

SIDES = {GramSide.LEFT: one_sided.left, GramSide.RIGHT: one_sided.right}
sides = pytest.mark.parametrize("side", GramSide)


@sides
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape, side):
    rule = rules.one_sided(OneSidedPolar(side))
    assert distance(rule, partial(one_sided.step, side=SIDES[side]), shape) < EIGEN


@sides
@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_centred_steps_follow_the_reference(shape, side):
    rule = centred(rules.one_sided(OneSidedPolar(side)))
    reference = partial(one_sided.step, side=SIDES[side], centred=True)
    assert distance(rule, reference, shape) < EIGEN


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_nuclear_norms_follow_the_reference(alpha):
    polar = NuclearPolar(polarlight.linalg.EigenPolar(), alpha)
    rule = rules.one_sided(polar, scale=polarlight.stages.Unscaled())
    assert distance(rule, partial(one_sided.step, alpha=alpha), TALL) < EIGEN


@pytest.mark.parametrize("shape", SHAPES)
def test_left_right_and_full_are_one_matrix(shape):
    M = gaussian(*shape)
    full = polarlight.linalg.ExactPolar()(M)
    for side in GramSide:
        torch.testing.assert_close(OneSidedPolar(side)(M), full, rtol=0, atol=1e-9)


def test_centred_left_stays_exact_in_float32():
    """The Gram matrix is singular: the reference is the pseudo-inverse in float64."""
    M = gaussian(16, 40)
    exact = one_sided.without_mean(one_sided.left(one_sided.without_mean(M.numpy())))
    rule = centred(
        rules.one_sided(OneSidedPolar(GramSide.LEFT), scale=polarlight.stages.Unscaled())
    )
    found = rule.direction(M.float(), {}).double().numpy()
    assert np.linalg.norm(found - exact) < 1e-4 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    "polar", [polarlight.linalg.EigenPolar(), polarlight.linalg.RegularisedPolar()], ids=str
)
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_damping_is_relative(polar, factor):
    """An absolute 1e-8 on the Gram matrix would shrink the first of these to nothing."""
    M = gaussian(*TALL, dtype=torch.float32)
    rule = rules.one_sided(polar)
    torch.testing.assert_close(rule.direction(factor * M, {}), rule.direction(M, {}))


def test_nuclear_norms_are_per_expert():
    """Summed over experts, one expert's gradients would change the step of another."""
    rule = rules.one_sided(
        NuclearPolar(polarlight.linalg.EigenPolar()), scale=polarlight.stages.Unscaled()
    )
    experts = torch.stack([gaussian(*TALL), 100 * skewed(*TALL, seed=1)])
    together = rule.direction(experts, {})
    for both, alone in zip(together, experts, strict=True):
        torch.testing.assert_close(both, rule.direction(alone, {}))
