"""Momentum in host memory: values, masks, checkpoints, shards, and its copies on a fake GPU."""

import io
from dataclasses import replace

import pytest
import torch
from torch import nn

import polarlight
from benchmarks.fake_cuda import PRODUCTS, Operations, fake_cuda
from polarlight import SpectralOptimizer
from polarlight.stages import EMA, HeavyBall, InInt8, OnHost, RawGradient
from tests.distributed.processes import run as run_processes
from tests.matrices import gaussian
from tests.rules.trajectory import EXACT

AVERAGES = pytest.mark.parametrize("average", [EMA(), EMA(nesterov=False), HeavyBall()], ids=repr)


def rule_of(momentum):
    return replace(polarlight.rules.muon(polar=EXACT), momentum=momentum)


def optimizer_of(momentum, **options):
    parameters = [nn.Parameter(gaussian(*s, seed=90).float()) for s in [(6, 4), (6, 4), (3, 8)]]
    return SpectralOptimizer(parameters, rule=rule_of(momentum), **options)


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def run(optimizer, steps, bad=None):
    """Steps with seeded gradients; in step `bad` the first one has a NaN."""
    for t in steps:
        for i, p in enumerate(parameters_of(optimizer)):
            p.grad = gaussian(*p.shape, seed=100 * t + i).to(p.dtype)
        if t == bad:
            parameters_of(optimizer)[0].grad[0, 0] = torch.nan
        optimizer.step()
    return [p.detach().clone() for p in parameters_of(optimizer)]


@AVERAGES
def test_values_are_those_of_the_momentum_itself_and_nan_is_left_out(average):
    expected = run(optimizer_of(average), range(4), bad=2)
    found = run(optimizer_of(OnHost(average)), range(4), bad=2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_resumed_run_continues_bit_for_bit():
    whole = run(optimizer_of(OnHost()), range(5))
    first, second = optimizer_of(OnHost()), optimizer_of(OnHost())
    run(first, range(3))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for p, q in zip(parameters_of(second), parameters_of(first), strict=True):
        p.data.copy_(q.data)
    found = run(second, range(3, 5))
    assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))


@pytest.mark.parametrize("average", [RawGradient(), InInt8(EMA())], ids=["raw", "int8"])
def test_a_momentum_with_other_state_is_refused(average):
    with pytest.raises(ValueError, match=r"expected a momentum whose only state is its buffer"):
        OnHost(average)


def on_a_gpu(momentum):
    """The operators of a step on a fake GPU, and the devices of momenta."""
    with fake_cuda():
        shapes = [(64, 32), (64, 32), (32, 64)]
        params = [nn.Parameter(torch.empty(s, device="cuda")) for s in shapes]
        optimizer = SpectralOptimizer(params, rule=rule_of(momentum))
        optimizer._complete_state()
        for p in params:
            p.grad = torch.empty_like(p)
        with Operations() as operations:
            optimizer.step()
        devices = {optimizer.state[p]["momentum_buffer"].device.type for p in params}
    return operations.operations, devices


def test_on_a_gpu_a_buffer_goes_there_and_back_once_and_all_else_runs_there():
    operations, devices = on_a_gpu(OnHost())
    assert devices == {"cpu"}
    there = [
        o
        for o in operations
        if o.operator == "_to_copy" and {x.device for x in o.inputs} == {"cpu"}
        and {x.device for x in o.outputs} == {"cuda"}
    ]  # fmt: skip
    back = [o for o in operations if o.operator == "copy_" and o.inputs[0].device == "cpu"]
    assert sorted(o.outputs[0].shape for o in there) == [(32, 64), (64, 32), (64, 32)]
    assert sorted(o.inputs[0].shape for o in back) == [(32, 64), (64, 32), (64, 32)]
    copies = {id(o) for o in (*there, *back)}
    others = [o for o in operations if id(o) not in copies]
    assert {device for o in others for device in o.devices} == {"cuda"}
    assert any(o.operator in PRODUCTS for o in others)


def test_without_it_the_buffer_stays_on_the_gpu():
    operations, devices = on_a_gpu(EMA())
    assert devices == {"cuda"}
    assert all(o.devices == {"cuda"} for o in operations)


def _sharded(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    W, gradients = gaussian(7, 4).float(), [gaussian(7, 4, seed=t).float() for t in range(3)]
    whole = nn.Parameter(W.clone())
    alone = SpectralOptimizer([whole], rule=rule_of(EMA()))
    p = nn.Parameter(distribute_tensor(W, mesh, [Shard(0)]))
    optimizer = SpectralOptimizer([p], rule=rule_of(OnHost()))
    for G in gradients:
        whole.grad, p.grad = G, distribute_tensor(G, mesh, [Shard(0)])
        alone.step()
        optimizer.step()
    torch.testing.assert_close(p.full_tensor(), whole, rtol=0, atol=1e-6)
    kept = optimizer.state[p]["momentum_buffer"]
    assert torch.equal(kept.full_tensor(), alone.state[whole]["momentum_buffer"])


def test_shards_on_a_cpu_mesh_give_the_values_of_one_process():
    run_processes(2, _sharded)
