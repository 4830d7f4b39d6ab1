"""Muon^2: the float64 reference, the oracle, and the gradient that it reads."""

from functools import partial

import pytest
import torch

from polarlight import OneByOne, SpectralOptimizer
from polarlight.linalg.slot import GRADIENT
from polarlight.rules import muon_squared
from polarlight.view import Heads
from tests.matrices import TALL, WIDE, gaussian
from tests.oracle import SIX_DIGITS, A, B, numbers, updates
from tests.reference import muon_squared as reference
from tests.rules.trajectory import EXACT, ROUNDING, distance

SHAPES = [TALL, WIDE, (12, 12)]
"""The first polar factor is that of signs: smaller square ones of these seeds are singular."""


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape):
    assert distance(muon_squared(eps=0.0, polar=EXACT), reference.step, shape) < ROUNDING
    betas = {"beta2": 0.8, "nesterov": False}
    rule = muon_squared(eps=0.0, polar=EXACT, **betas)
    assert distance(rule, partial(reference.step, **betas), shape) < ROUNDING


def test_updates_follow_the_oracle():
    expected = numbers([0.573984, -0.739468, 0.351753], [0.783995, 0.620277, 0.024659])
    torch.testing.assert_close(updates(muon_squared(polar=EXACT), A, B)[1], expected, **SIX_DIGITS)


def test_the_second_moment_is_that_of_the_gradient_not_of_the_momentum():
    p = torch.nn.Parameter(gaussian(6, 4))
    optimizer = SpectralOptimizer([p], lr=0.1, rule=muon_squared())
    for step in range(3):
        p.grad = torch.full_like(p, 1.0 if step < 2 else -1.0)
        optimizer.step()
    assert optimizer.state[p]["second_moment"].unique().numel() == 1  # of a constant size
    expected = 1 - 0.95**3  # in units of the first gradient's root mean square, which is 1
    assert optimizer.state[p]["second_moment"][0, 0].item() == pytest.approx(expected)


def test_the_gradient_is_no_state():
    p = torch.nn.Parameter(gaussian(6, 4))
    optimizer = SpectralOptimizer([p], lr=0.1, rule=muon_squared())
    p.grad = gaussian(6, 4, seed=1)
    optimizer.step()
    assert GRADIENT not in optimizer.state[p]
    assert GRADIENT not in optimizer.state_dict()["state"][0]


def test_under_maximize_the_statistics_do_not_change_and_the_step_is_negated():
    p, q = (torch.nn.Parameter(torch.zeros(6, 4, dtype=torch.float64)) for _ in range(2))
    up = SpectralOptimizer([p], lr=0.1, rule=muon_squared(polar=EXACT), maximize=True)
    down = SpectralOptimizer([q], lr=0.1, rule=muon_squared(polar=EXACT), executor=OneByOne())
    for step in range(3):
        p.grad = q.grad = gaussian(6, 4, seed=step)
        up.step()
        down.step()
    torch.testing.assert_close(p.detach(), -q.detach())


def test_every_head_reads_its_own_part_of_the_gradient():
    whole = torch.nn.Parameter(gaussian(8, 4))
    parts = [torch.nn.Parameter(x.clone()) for x in whole.detach().chunk(2)]
    rule = muon_squared(polar=EXACT)
    one = SpectralOptimizer([whole], lr=0.1, rule=rule, view=Heads(2))
    many = SpectralOptimizer(parts, lr=0.1, rule=rule)
    for step in range(3):
        whole.grad = gaussian(8, 4, seed=step)
        for p, g in zip(parts, whole.grad.chunk(2), strict=True):
            p.grad = g.clone()
        one.step()
        many.step()
    torch.testing.assert_close(torch.cat([p.detach() for p in parts]), whole.detach())
