"""Newton-Muon: the numeric oracle, when inputs are seen, blocks, failures."""

import pytest
import torch
from torch import nn

import polarlight
from polarlight.hooks import NewtonMuon
from polarlight.linalg import ExactPolar
from tests.matrices import gaussian
from tests.oracle import SIX_DIGITS, A, numbers


def made(rows, columns, every=1, **options):
    layer = nn.Linear(columns, rows, bias=False).double()
    hook = NewtonMuon(nn.Sequential(layer), every=every, **options)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    hook.attach(optimizer)
    return layer, hook, optimizer


def preconditioned(layer, optimizer, gradient):
    """The gradient that the optimizer sees."""
    before = layer.weight.detach().clone()
    layer.weight.grad = gradient
    optimizer.step()
    return before - layer.weight.detach()


def test_values_equal_the_numeric_oracle_of_the_specification():
    """X'X / tokens = [[2, 1, 0], [1, 2, 0], [0, 0, 1]] from three inputs."""
    layer, _, optimizer = made(2, 3)
    X = torch.linalg.cholesky(numbers([2.0, 1, 0], [1, 2, 0], [0, 0, 1])).mT * 3**0.5
    layer(X)
    seen = preconditioned(layer, optimizer, A.clone())
    expected = numbers([0.943215, -0.262892, 0.203059], [0.302906, 0.429753, -0.850623])
    torch.testing.assert_close(ExactPolar()(seen), expected, **SIX_DIGITS)


def test_inputs_are_seen_in_every_nth_step_alone():
    layer, hook, optimizer = made(2, 3, every=3)
    for step in range(1, 7):
        layer(gaussian(5, 3, seed=step))
        seen = preconditioned(layer, optimizer, A.clone())
        assert torch.allclose(seen, A) == (step < 3)
        if step == 3:
            first = hook.kept["covariance"]["0.weight"].clone()
        if step == 5:
            assert torch.equal(hook.kept["covariance"]["0.weight"], first)
    assert not torch.equal(hook.kept["covariance"]["0.weight"], first)


def test_inputs_of_evaluation_are_not_seen():
    layer, hook, optimizer = made(2, 3)
    with torch.no_grad():
        layer(gaussian(5, 3))
    preconditioned(layer, optimizer, A.clone())
    assert not hook.kept["covariance"]


def test_micro_batches_are_averaged():
    layer, hook, optimizer = made(2, 3)
    parts = [gaussian(5, 3, seed=seed) for seed in (0, 1)]
    for X in parts:
        layer(X)
    preconditioned(layer, optimizer, A.clone())
    mean = sum(X.mT @ X / 5 for X in parts) / 2
    expected = 0.95 * 1e-3 * torch.eye(3, dtype=torch.float64) + 0.05 * mean
    torch.testing.assert_close(hook.kept["covariance"]["0.weight"][0], expected)


def test_a_wide_weight_has_blocks_of_its_rows():
    layer, _, optimizer = made(2, 6)
    X, G = gaussian(9, 6), gaussian(2, 6, seed=1)
    layer(X)
    seen = preconditioned(layer, optimizer, G.clone())
    for i in range(3):
        block = X[:, 2 * i : 2 * i + 2]
        C = 0.95 * 1e-3 * torch.eye(2, dtype=X.dtype) + 0.05 * block.mT @ block / 9
        K = C + (0.2 * C.trace() / 2 + 1e-8) * torch.eye(2, dtype=X.dtype)
        expected = G[:, 2 * i : 2 * i + 2] @ torch.linalg.inv(K)
        torch.testing.assert_close(seen[:, 2 * i : 2 * i + 2], expected)


def test_an_inverse_that_fails_is_the_identity():
    layer, _, optimizer = made(2, 3)
    layer(torch.full((4, 3), torch.nan, dtype=torch.float64))
    torch.testing.assert_close(preconditioned(layer, optimizer, A.clone()), A)


def test_the_callers_gradient_is_back_after_the_step():
    layer, _, optimizer = made(2, 3)
    layer(gaussian(5, 3))
    given = A.clone()
    preconditioned(layer, optimizer, given)
    assert layer.weight.grad is given
    assert torch.equal(given, A)


def test_a_loaded_state_continues_the_run():
    found = []
    for saved in (False, True):
        torch.manual_seed(0)
        layer, hook, optimizer = made(2, 3, every=2)
        for step in range(4):
            if saved and step == 3:
                state = hook.state_dict()
                weight = layer.weight.detach().clone()
                layer, hook, optimizer = made(2, 3, every=2)
                hook.load_state_dict(state)
                layer.weight.data.copy_(weight)
            layer(gaussian(5, 3, seed=step))
            preconditioned(layer, optimizer, gaussian(2, 3, seed=9 + step))
        found.append(layer.weight.detach())
    torch.testing.assert_close(*found)


def test_a_network_trains_under_muon_with_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = polarlight.Muon(net, lr=0.02)
    NewtonMuon(net, [("0.weight", net[0].weight)], every=2).attach(optimizer)
    X = gaussian(32, 4).float()
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        loss = (net(X)[:, 0] - X[:, 0] * X[:, 1]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_wrong_weights_and_numbers_are_refused_with_the_value():
    net = nn.Sequential(nn.Linear(4, 8))
    with pytest.raises(ValueError, match="no weight of a linear layer"):
        NewtonMuon(net, [("x", nn.Parameter(torch.ones(2, 2)))])
    for options, said in (
        ({"every": 0}, "every must be >= 1, got 0"),
        ({"decay": 1.0}, r"decay must lie in \[0, 1\), got 1.0"),
        ({"damping": 0.0}, "damping must be > 0, got 0.0"),
    ):
        with pytest.raises(ValueError, match=said):
            NewtonMuon(net, **options)


def test_a_weight_that_may_be_a_shard_is_refused():
    class Shard(nn.Parameter):
        pass

    layer = nn.Linear(3, 2)
    layer.weight = Shard(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"0.weight is a Shard; Newton-Muon needs whole weights"):
        NewtonMuon(nn.Sequential(layer))


def test_nothing_is_left_when_the_handles_are_removed():
    model = nn.Sequential(nn.Linear(3, 2, bias=False).double())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    hook = NewtonMuon(model, every=1)
    handles = hook.attach(optimizer)
    for handle in handles:
        handle.remove()
    model(gaussian(5, 3))
    assert torch.allclose(preconditioned(model[0], optimizer, A.clone()), A)
    assert hook.kept["covariance"] == {}
    assert not hook._seen
