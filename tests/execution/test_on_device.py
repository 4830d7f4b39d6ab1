"""Jobs that lie on the host, computed on a device."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import polarlight
from benchmarks.fake_cuda import PRODUCTS, Operations, fake_cuda
from polarlight.execution.job import Job, new_buffers
from polarlight.execution.on_device import OnDevice
from polarlight.view import Whole
from tests.distributed.processes import run as run_processes
from tests.matrices import gaussian
from tests.releases import needs_copies_of_fakes

RULES = {
    "muon": polarlight.rules.muon(),
    "normuon": polarlight.rules.normuon(),
    "aurora": polarlight.rules.aurora(),
    "soap": polarlight.rules.soap(),
}


class Elsewhere(OnDevice):
    """A device whose tensors are copies on the CPU: what is not copied back is lost."""

    __slots__ = ()

    def _moved(self, job):
        return replace(
            job,
            matrix=job.matrix.clone(),
            buffers={name: x.clone() for name, x in job.buffers.items()},
        )


def optimizer_of(rule, executor):
    params = [nn.Parameter(gaussian(*s, seed=1).float()) for s in [(8, 4), (8, 4), (4, 8)]]
    return polarlight.SpectralOptimizer(params, rule=rule, lr=0.02, executor=executor)


@pytest.mark.parametrize("max_bytes", [0, 2**20])
@pytest.mark.parametrize("name", RULES)
def test_directions_and_buffers_are_those_of_the_inner_executor(name, max_bytes):
    one = polarlight.OneByOne()
    runs = [
        optimizer_of(RULES[name], one),
        optimizer_of(RULES[name], Elsewhere("cpu", one, max_bytes)),
        optimizer_of(RULES[name], OnDevice("cpu", one, max_bytes)),
    ]
    for t in range(3):
        for optimizer in runs:
            for i, p in enumerate(optimizer.param_groups[0]["params"]):
                p.grad = gaussian(*p.shape, seed=10 * t + i).float()
            optimizer.step()
    expected, *found = [optimizer.param_groups[0]["params"] for optimizer in runs]
    for optimizer, params in zip(runs[1:], found, strict=True):
        for p, q in zip(params, expected, strict=True):
            assert torch.equal(p, q)
            for key, x in runs[0].state[q].items():
                assert torch.equal(optimizer.state[p][key], x)


@needs_copies_of_fakes
def test_products_run_on_the_device_and_directions_come_back():
    rule = RULES["normuon"]
    with fake_cuda():
        matrices = [torch.zeros(64, 32), torch.zeros(64, 32)]
        jobs = [Job(rule, M, new_buffers(rule, Whole(), M)) for M in matrices]
        with Operations() as operations:
            directions = OnDevice("cuda").directions(jobs)
        assert [D.device.type for D in directions] == ["cpu", "cpu"]
        assert all(x.device.type == "cpu" for job in jobs for x in job.buffers.values())
    products = [o for o in operations.operations if o.operator in PRODUCTS]
    assert products
    assert all(o.devices == {"cuda"} for o in products)


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match=r"max_bytes must be >= 0, got -1"):
        OnDevice("cpu", max_bytes=-1)


def _sharded(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    W, gradients = gaussian(7, 4).float(), [gaussian(7, 4, seed=t).float() for t in range(3)]
    rule = polarlight.rules.normuon()
    whole, p = nn.Parameter(W.clone()), nn.Parameter(distribute_tensor(W, mesh, [Shard(0)]))
    alone = polarlight.SpectralOptimizer([whole], rule=rule)
    inner = Elsewhere("cpu", polarlight.OneByOne())
    optimizer = polarlight.SpectralOptimizer([p], rule=rule, executor=polarlight.Sharded(inner))
    for G in gradients:
        whole.grad, p.grad = G, distribute_tensor(G, mesh, [Shard(0)])
        alone.step()
        optimizer.step()
    torch.testing.assert_close(p.full_tensor(), whole, rtol=0, atol=1e-6)


def test_shards_are_computed_there_too():
    run_processes(2, _sharded)
