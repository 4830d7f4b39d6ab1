"""Muown: the numeric oracle, rows of zeros, what is saved."""

import pytest
import torch

import polarlight
from polarlight.hooks import Muown
from polarlight.linalg import ExactPolar
from polarlight.rules import muon
from polarlight.stages.scales import MatchRmsAdamW
from tests.matrices import gaussian
from tests.oracle import SIX_DIGITS, A, B, W, numbers


def made(start, **options):
    p = torch.nn.Parameter(start.clone())
    rule = muon(polar=ExactPolar(), scale=MatchRmsAdamW())
    optimizer = polarlight.SpectralOptimizer([p], lr=0.1, momentum=0.95, rule=rule, **options)
    hook = Muown([("w", p)], lambda name: 2.5, length=11)
    hook.attach(optimizer)
    return p, optimizer, hook


def test_values_equal_the_numeric_oracle_of_the_specification():
    p, optimizer, hook = made(W)
    p.grad = A.clone()
    optimizer.step()
    first = numbers([0.929729, 1.923058, -0.015412], [-0.023888, 0.927702, -0.930567])
    torch.testing.assert_close(p.detach(), first, **SIX_DIGITS)
    sizes = hook.kept["size"]["w"].flatten()
    torch.testing.assert_close(sizes, numbers([2.136068, 1.314214])[0], **SIX_DIGITS)
    p.grad = B.clone()
    optimizer.step()
    second = numbers([0.885416, 1.900558, -0.016924], [-0.043413, 0.864649, -0.898032])
    torch.testing.assert_close(p.detach(), second, **SIX_DIGITS)
    radius = hook.kept["radius"]["w"].flatten()
    torch.testing.assert_close(radius, numbers([2.252721, 1.482722])[0], **SIX_DIGITS)


def test_rows_of_zeros_are_thrown_to_their_first_norm():
    p, optimizer, _ = made(torch.zeros(4, 6, dtype=torch.float64))
    p.grad = gaussian(4, 6)
    optimizer.step()
    norms = p.detach().norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.33**0.5))


def test_the_callers_gradient_is_back_after_the_step():
    p, optimizer, _ = made(W)
    given = A.clone()
    p.grad = given
    optimizer.step()
    assert p.grad is given
    assert torch.equal(given, A)


def test_weight_decay_does_not_act():
    weights = []
    for decay in (0.0, 0.3):
        p, optimizer, _ = made(W, weight_decay=decay)
        p.grad = A.clone()
        optimizer.step()
        weights.append(p.detach())
    torch.testing.assert_close(*weights)


def test_norms_of_rows_are_those_of_adam_alone():
    p, optimizer, hook = made(W)
    for t in range(4):
        p.grad = gaussian(2, 3, seed=t)
        optimizer.step()
    torch.testing.assert_close(p.detach().norm(dim=1, keepdim=True), hook.kept["size"]["w"])


def test_lr_zero_moves_nothing():
    p, optimizer, _ = made(W)
    optimizer.param_groups[0]["lr"] = 0.0
    p.grad = A.clone()
    optimizer.step()
    assert torch.equal(p.detach(), W)


def test_wrong_numbers_are_refused_with_the_value():
    p = torch.nn.Parameter(W.clone())
    with pytest.raises(ValueError, match="length must be >= 2, got 1"):
        Muown([("w", p)], lambda name: 2.5, length=1)
    with pytest.raises(ValueError, match="power must be > 0, got 0"):
        Muown([("w", p)], lambda name: 2.5, length=3, power=0)


def test_a_gradient_along_its_weight_turns_no_row():
    """Across the weight there is rounding alone, of which a polar factor makes a full step."""
    W = torch.nn.Parameter(gaussian(12, 8, dtype=torch.float32))
    optimizer = polarlight.Muon([W], lr=0.1)
    Muown([("W", W)], lambda name: 2.5, length=100).attach(optimizer)
    before = W.detach().clone()
    for _ in range(3):
        W.grad = W.detach() * gaussian(12, 1, dtype=torch.float32)
        optimizer.step()
    cosine = (W.detach() * before).sum(-1) / (W.detach().norm(dim=-1) * before.norm(dim=-1))
    assert cosine.min() > 1 - 1e-5
    assert (W.detach().norm(dim=-1) - before.norm(dim=-1)).abs().min() > 0.05
