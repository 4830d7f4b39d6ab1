"""Clipping of the AdamW part: which gradients are scaled, by which norm, and what is refused."""

import math

import pytest
import torch
from torch import nn

import polarlight
from polarlight import clip_grad_norm_
from tests.distributed.processes import run


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 16))


def with_gradients(net, size=10.0):
    for i, p in enumerate(net.parameters()):
        p.grad = size * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return net


def adamw_part(optimizer):
    return [
        p
        for group in optimizer.param_groups
        for p in group["params"]
        if isinstance(group["rule"], polarlight.rules.AdamWRule)
    ]


@pytest.mark.parametrize("make", [polarlight.Muon, polarlight.Aurora, polarlight.NorMuon])
def test_only_gradients_of_the_adamw_part_are_scaled(make):
    net = with_gradients(model())
    optimizer = make(net)
    rest = adamw_part(optimizer)
    before = {p: p.grad.clone() for p in net.parameters()}
    norm = clip_grad_norm_(optimizer, 1.5)
    expected = math.sqrt(sum(float(before[p].double().square().sum()) for p in rest))
    assert float(norm) == pytest.approx(expected, rel=1e-5)
    for p in net.parameters():
        factor = 1.5 / expected if any(p is q for q in rest) else 1.0
        torch.testing.assert_close(p.grad, before[p] * factor)


def test_gradients_below_the_bound_keep_their_bits():
    net = with_gradients(model(), 1e-3)
    before = [p.grad.clone() for p in net.parameters()]
    clip_grad_norm_(polarlight.Muon(net), 1e3)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before, strict=True))


def test_a_rule_whose_update_grows_with_the_gradient_is_clipped_too():
    net = with_gradients(model())
    norm = clip_grad_norm_(polarlight.PolarGrad(net), 1.0)
    everything = torch.nn.utils.get_total_norm([p.grad for p in net.parameters()])
    assert float(norm) > 1
    assert float(everything) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_gradient_does_not_spread_to_others(bad):
    net = with_gradients(model())
    optimizer = polarlight.Muon(net)
    lost, *kept = adamw_part(optimizer)
    lost.grad.view(-1)[0] = bad
    norm = clip_grad_norm_(optimizer, 1.0)
    assert norm.isfinite()
    assert not lost.grad.isfinite().all()
    assert float(torch.nn.utils.get_total_norm([p.grad for p in kept])) == pytest.approx(
        1, rel=1e-4
    )
    optimizer.step()
    assert sum(optimizer.skipped().values()) == 1


def test_infinity_measures_and_changes_nothing():
    net = with_gradients(model())
    before = [p.grad.clone() for p in net.parameters()]
    assert clip_grad_norm_(polarlight.Muon(net), math.inf) > 1
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_norms_of_narrow_and_wide_gradients_do_not_overflow(dtype):
    net = model().to(dtype)
    for p in net.parameters():
        p.grad = torch.full_like(p, 300.0)  # 128 squares of 300 overflow float16
    optimizer = polarlight.Muon(net)
    rest = adamw_part(optimizer)
    norm = clip_grad_norm_(optimizer, 1.0)
    assert float(norm) == pytest.approx(300 * math.sqrt(sum(p.numel() for p in rest)), rel=1e-5)
    clipped = torch.nn.utils.get_total_norm([p.grad.double() for p in rest])
    assert float(clipped) == pytest.approx(1, rel=0.02)


def test_without_gradients_the_norm_is_zero():
    assert float(clip_grad_norm_(polarlight.Muon(model()), 1.0)) == 0


@pytest.mark.parametrize("bound", [0, -1.0, math.nan])
def test_a_bound_that_is_not_positive_is_refused_with_its_value(bound):
    with pytest.raises(ValueError, match=f"max_norm must be > 0, got {bound}"):
        clip_grad_norm_(polarlight.Muon(with_gradients(model())), bound)


def test_an_optimizer_without_rules_raises_with_the_fix():
    optimizer = torch.optim.AdamW(with_gradients(model()).parameters())
    with pytest.raises(TypeError, match=r"torch\.nn\.utils\.clip_grad_norm_"):
        clip_grad_norm_(optimizer, 1.0)


def _clip_sharded(rank, expected_norm, expected):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor

    net = model()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    optimizer = polarlight.Muon(net)
    for i, p in enumerate(net.parameters()):
        whole = 10 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        p.grad = distribute_tensor(whole, p.device_mesh, p.placements)
    norm = clip_grad_norm_(optimizer, 1.5)
    assert float(norm) == pytest.approx(expected_norm, rel=1e-5)
    for p, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad.full_tensor(), gradient)


def test_shards_are_clipped_by_the_norm_of_whole_gradients():
    net = with_gradients(model())
    norm = clip_grad_norm_(polarlight.Muon(net), 1.5)
    run(2, _clip_sharded, float(norm), [p.grad for p in net.parameters()])
