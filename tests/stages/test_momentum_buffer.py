"""Gradients are never written, and the momentum buffer is written by the momentum slot alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import polarlight
from polarlight.stages.momentum import HeavyBall
from tests.matrices import SHAPES, TALL, gaussian
from tests.reference.momentum import ema, heavy_ball
from tests.rules.trajectory import EXACT, NUMBERS

RULES = {
    "muon": polarlight.rules.muon(polar=EXACT),
    "normuon": polarlight.rules.normuon(polar=EXACT),
    "normuon_paper": polarlight.rules.normuon_paper(polar=EXACT),
    "unormuon": polarlight.rules.unormuon(polar=EXACT),
    "aurora": polarlight.rules.aurora(polarlight.rules.BalancedPolar(EXACT)),
    "aurora_paper": polarlight.rules.aurora(polarlight.rules.FeedbackPolar(EXACT)),
    "aurora_warm": polarlight.rules.aurora(polarlight.rules.WarmPolar(EXACT)),
    "aurora_exact": polarlight.rules.aurora(polarlight.rules.ExactBalanced(EXACT, steps=3)),
    "riemannian_aurora": polarlight.rules.aurora(polarlight.rules.RiemannianPolar(EXACT)),
    "muoneq": polarlight.rules.muoneq(polar=EXACT),
    "muoneq_phase": polarlight.rules.muoneq(polarlight.rules.rows_after(2), polar=EXACT),
}
AVERAGES = {
    name: rule for name, rule in RULES.items() if isinstance(rule.momentum, polarlight.stages.EMA)
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
both = pytest.mark.parametrize("nesterov", [True, False])


def with_nesterov(rule, nesterov):
    return replace(rule, momentum=replace(rule.momentum, nesterov=nesterov))


def trained(rule, shape, dtype, steps=4):
    """Gradient before and after each step, and the momentum buffer after it."""
    parameter = torch.nn.Parameter(gaussian(*shape, seed=100, dtype=dtype))
    optimizer = polarlight.SpectralOptimizer([parameter], rule=rule, **NUMBERS)
    for t in range(steps):
        parameter.grad = gaussian(*shape, seed=t, dtype=dtype)
        before = parameter.grad.clone()
        optimizer.step()
        yield before, parameter.grad, optimizer.state[parameter]["momentum_buffer"]


@rules
@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_not_written(rule, nesterov, dtype):
    for before, after, _ in trained(with_nesterov(rule, nesterov), TALL, dtype):
        assert torch.equal(before, after)


@rules
@both
@pytest.mark.parametrize("shape", SHAPES)
def test_the_buffer_is_the_references(rule, nesterov, shape):
    average = ema if isinstance(rule.momentum, polarlight.stages.EMA) else heavy_ball
    state = {}
    for G, _, buffer in trained(with_nesterov(rule, nesterov), shape, torch.float64):
        average(G.numpy(), state, NUMBERS["momentum"], nesterov)
        # The reference adds two products, the package interpolates: a rounding per step.
        np.testing.assert_allclose(buffer.numpy(), state["M"], rtol=0, atol=1e-14)


@both
@pytest.mark.parametrize("rule", AVERAGES.values(), ids=AVERAGES)
def test_a_bfloat16_average_is_rounded_once_per_step_and_otherwise_exact(rule, nesterov):
    """`torch.optim.Muon` 2.13 normalises this buffer in place when nesterov=False."""
    expected = torch.zeros(TALL, dtype=torch.bfloat16)
    for G, _, buffer in trained(with_nesterov(rule, nesterov), TALL, torch.bfloat16):
        state = {"M": expected.double().numpy()}
        ema(G.double().numpy(), state, NUMBERS["momentum"], nesterov)
        expected = torch.from_numpy(state["M"]).to(torch.bfloat16)
        assert torch.equal(buffer, expected)


@both
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_a_float16_sum_stops_at_the_largest_number(nesterov, as_tensor):
    beta = torch.tensor(0.95) if as_tensor else 0.95
    gradient = torch.tensor([[4e4, -4e4, 1.0, 0.0]], dtype=torch.float16)
    buffer = torch.zeros_like(gradient)
    for _ in range(5):
        (mapped,) = HeavyBall(nesterov)([gradient], [buffer], beta)
    largest = torch.finfo(torch.float16).max
    for M in (buffer, mapped):
        assert M[0, 0] == largest
        assert M[0, 1] == -largest
        assert 4 < M[0, 2] < 6
        assert M[0, 3] == 0


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_float16_gradient_that_is_not_finite_is_not_hidden_by_the_limit(value):
    gradient = torch.tensor([[value, 1.0]], dtype=torch.float16)
    buffer = torch.zeros_like(gradient)
    (mapped,) = HeavyBall()([gradient], [buffer], 0.95)
    assert buffer.isfinite().tolist() == mapped.isfinite().tolist() == [[False, True]]
