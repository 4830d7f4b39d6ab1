"""Circuit-Muon: the oracle, and what a head computes."""

import pytest
import torch

import polarlight
from polarlight.hooks import Circuit, CircuitMuon
from polarlight.hooks.circuit import coupled
from tests.matrices import gaussian
from tests.oracle import POLAR_A, W, numbers

OUT = numbers([2.0, 1], [0, 1], [1, 0])


def test_values_equal_the_numeric_oracle_of_the_specification():
    dV, dO = coupled(W, OUT, POLAR_A, POLAR_A.mT, heads=2, damping=1e-3)
    value = numbers([0.809664, 0.178983, 0.266103], [0.338333, 0.679639, -0.700227])
    output = numbers([0.502123, 0.458884], [-0.026045, 0.920741], [0.163589, -0.820777])
    torch.testing.assert_close(dV, value, rtol=0, atol=2e-6)
    torch.testing.assert_close(dO, output, rtol=0, atol=2e-6)


def test_the_step_is_the_coupled_one():
    V, out = gaussian(6, 5), gaussian(5, 6, seed=1)
    nets = []
    for hooked in (False, True):
        p, q = torch.nn.Parameter(V.clone()), torch.nn.Parameter(out.clone())
        optimizer = polarlight.Muon([p, q], lr=0.1, weight_decay=0.2)
        if hooked:
            CircuitMuon([Circuit(p, q, heads=3)]).attach(optimizer)
        p.grad, q.grad = gaussian(6, 5, seed=2), gaussian(5, 6, seed=3)
        optimizer.step()
        nets.append((p.detach(), q.detach()))
    kept = 1 - 0.1 * 0.2
    plain = [(kept * w - x) / 0.1 for w, x in zip((V, out), nets[0], strict=True)]
    expected = coupled(V, out, *plain, heads=3, damping=1e-3)
    for w, d, found in zip((V, out), expected, nets[1], strict=True):
        torch.testing.assert_close(found, kept * w - 0.1 * d)


def test_a_part_that_only_trades_norms_is_taken_out():
    V, out = gaussian(4, 5), gaussian(5, 4, seed=1)
    V = V * (out.norm() / V.norm())
    dV, dO = coupled(V, out, V, -out, heads=1, damping=1e-12)
    assert dV.abs().max() < 1e-9
    assert dO.abs().max() < 1e-9


def test_lr_zero_moves_nothing():
    p, q = torch.nn.Parameter(gaussian(4, 5)), torch.nn.Parameter(gaussian(5, 4))
    optimizer = polarlight.Muon([p, q], lr=0.0)
    CircuitMuon([Circuit(p, q, heads=2)]).attach(optimizer)
    p.grad, q.grad = gaussian(4, 5), gaussian(5, 4)
    optimizer.step()
    assert torch.equal(p.detach(), gaussian(4, 5))


def test_wrong_pairs_and_numbers_are_refused_with_the_value():
    with pytest.raises(ValueError, match="3 heads do not fit a value weight of 4 rows"):
        Circuit(torch.ones(4, 5), torch.ones(5, 4), heads=3)
    with pytest.raises(ValueError, match="damping must be > 0, got 0"):
        CircuitMuon([], damping=0.0)
