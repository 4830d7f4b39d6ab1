"""AdamW: the float64 reference, and what the diagnostics read from its state."""

from functools import partial

import pytest
import torch

import polarlight
from polarlight import AdamWRule
from tests.matrices import SHAPES, gaussian
from tests.reference import adamw
from tests.rules.trajectory import NUMBERS, ROUNDING, distance


@pytest.mark.parametrize("shape", [*SHAPES, (7,), (3, 4, 5)])
def test_steps_follow_the_reference(shape):
    assert distance(polarlight.AdamWRule(), adamw.step, shape) < ROUNDING


def test_beta2_and_eps_are_those_of_the_rule():
    rule = polarlight.AdamWRule(beta2=0.7, eps=0.1)
    assert distance(rule, partial(adamw.step, beta2=0.7, eps=0.1), (7,)) < ROUNDING


def one_parameter(weight_decay=0.0):
    parameter = torch.nn.Parameter(gaussian(5, 4))
    numbers = NUMBERS | {"weight_decay": weight_decay}
    return parameter, polarlight.SpectralOptimizer(
        [parameter], rule=polarlight.AdamWRule(), **numbers
    )


def test_the_first_step_goes_along_the_sign_of_the_gradient():
    parameter, optimizer = one_parameter()
    before, parameter.grad = parameter.detach().clone(), gaussian(5, 4, seed=1)
    optimizer.step()
    moved = (before - parameter.detach()) / NUMBERS["lr"]
    # eps over the smallest |g|: 1e-10 / 0.09.
    torch.testing.assert_close(moved, parameter.grad.sign(), rtol=0, atol=1e-8)


def test_the_observed_direction_is_what_moved_the_parameter():
    parameter, optimizer = one_parameter()
    for t in range(3):
        before, parameter.grad = parameter.detach().clone(), gaussian(5, 4, seed=t)
        optimizer.step()
        _, direction = polarlight.AdamWRule().momentum_and_direction(
            optimizer.state[parameter], NUMBERS["momentum"]
        )
        # The diagnostics take beta ** step in float32, as `step` is: 2e-7 in ten steps.
        moved = (before - parameter.detach()) / NUMBERS["lr"]
        torch.testing.assert_close(direction, moved, rtol=1e-6, atol=0)


def test_zero_gradients_from_the_start_move_nothing():
    parameter, optimizer = one_parameter()
    before, parameter.grad = parameter.detach().clone(), torch.zeros(5, 4, dtype=torch.float64)
    optimizer.step()
    assert torch.equal(parameter.detach(), before)


LAYOUTS = {
    "rows": lambda x: x.clone(),
    "columns": lambda x: x.mT.contiguous().mT,
    "gaps": lambda x: torch.stack([x, torch.full_like(x, 7.0)], dim=-1)[..., 0],
}
layouts = pytest.mark.parametrize("weight", LAYOUTS.values(), ids=LAYOUTS)


@layouts
@pytest.mark.parametrize("gradient", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("finite", [False, True], ids=["step", "step_finite"])
def test_memory_layouts_do_not_matter(weight, gradient, finite):
    """torch's fused kernel reads entries as they lie in memory, and writes into gaps."""
    results = []
    for lay_weight, lay_gradient in ((weight, gradient), (torch.clone, torch.clone)):
        p = lay_weight(gaussian(3, 4))
        state = AdamWRule().new_state(p)
        step = AdamWRule().step
        if finite:
            step = partial(AdamWRule().step_finite, finite=[torch.tensor(True)])
        for seed in range(3):
            g = lay_gradient(gaussian(3, 4, seed=seed))
            step([p], [g], [state], lr=0.1, weight_decay=0.1, momentum=0.9)
        if weight is LAYOUTS["gaps"] and lay_weight is weight:
            assert (p._base[..., 1] == 7).all()
        results.append(p.clone())
    # the same kernel on the same numbers, vectorised elsewhere: float64 rounding
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


def test_the_direction_of_what_has_not_moved_is_zero_without_a_floor_too():
    rule = AdamWRule(eps=0.0)
    _, direction = rule.momentum_and_direction(rule.new_state(torch.zeros(3)), 0.9)
    assert torch.equal(direction, torch.zeros(3))


def test_decay_rates_reach_every_group_of_adamw():
    net = torch.nn.Sequential(torch.nn.Embedding(4, 4), torch.nn.Linear(4, 4))
    optimizer = polarlight.Muon(net, aux_betas=(0.8, 0.7))
    rates = {
        (group["momentum"], group["rule"].beta2)
        for group in optimizer.param_groups
        if isinstance(group["rule"], AdamWRule)
    }
    assert rates == {(0.8, 0.7)}
