"""Faults on one process: an error on all processes, or no effect on the others."""

import os

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.multiprocessing.spawn import ProcessExitedException

import polarlight
from polarlight.diagnostics.sharding import full, shard_like
from polarlight.execution.sharded.options import Options
from tests.distributed.layouts import LAYOUTS, models
from tests.distributed.processes import run


def on_rows(shape, mesh, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return distribute_tensor(values, mesh, [Shard(0)], src_data_rank=None)


def parameters(mesh, shapes=((8, 4), (6, 6))):
    found = [nn.Parameter(on_rows(shape, mesh, i)) for i, shape in enumerate(shapes)]
    for i, p in enumerate(found):
        p.grad = on_rows(p.shape, mesh, 10 + i)
    return found


def check_disagreement(rank):
    mesh = init_device_mesh("cpu", (2,))
    by_rank = {
        "another rule": lambda p: (
            [("a", p[0])],
            [polarlight.rules.muon(), polarlight.rules.normuon()][rank],
        ),
        "another order": lambda p: (
            list(zip("ab", p, strict=True))[:: 1 - 2 * rank],
            polarlight.rules.muon(),
        ),
        "rank 1 has 1": lambda p: (
            list(zip("ab", p, strict=True))[: 2 - rank],
            polarlight.rules.muon(),
        ),
    }
    for case, build in by_rank.items():
        both = parameters(mesh)
        before = [full(p) for p in both]
        named, rule = build(both)
        with pytest.raises(
            ValueError, match="processes disagree on the parameters of this step"
        ) as e:
            polarlight.SpectralOptimizer(named, rule=rule).step()
        assert ("parameter 0 is [a" in str(e.value)) == (case != "rank 1 has 1"), str(e.value)
        assert "rank 1" in str(e.value)
        assert all(torch.equal(full(p), b) for p, b in zip(both, before, strict=True))


def check_nan(rank):
    whole, sharded = models(torch.float32, LAYOUTS[2]["rows"])
    optimizer = polarlight.SpectralOptimizer(
        sharded.named_parameters(),
        lr=0.1,
        rule=polarlight.rules.aurora(),
        view=polarlight.view.Whole(),
    )
    for name, p in whole.named_parameters():
        gradient = torch.ones_like(p)
        if name == "p1":
            gradient[0, 0] = float("nan")  # in the shard of rank 0
        sharded.get_parameter(name).grad = shard_like(gradient, sharded.get_parameter(name))
    before = {name: full(p) for name, p in sharded.named_parameters()}
    optimizer.step()
    moved = {name: not torch.equal(full(p), before[name]) for name, p in sharded.named_parameters()}
    assert moved == {name: name != "p1" for name in moved}
    assert all(full(p).isfinite().all() for p in sharded.parameters())
    assert optimizer.skipped() == {"p1": 1}
    optimizer.nonfinite = polarlight.NonFinite.RAISE
    with pytest.raises(FloatingPointError, match="gradient of p1 is not finite"):
        optimizer.step()


def check_nothing_to_do(rank):
    """Groups of which nothing takes part, and a step in which nothing does at all."""
    frozen, bad, good = parameters(init_device_mesh("cpu", (2,)), ((8, 4), (6, 6), (4, 8)))
    frozen.grad = None
    bad.grad.to_local()[:] = float("nan")
    groups = [{"params": [pair]} for pair in (("frozen", frozen), ("bad", bad), ("good", good))]
    optimizer = polarlight.SpectralOptimizer(groups, rule=polarlight.rules.muon())
    before = {name: full(p) for name, p in zip(("bad", "good"), (bad, good), strict=True)}
    optimizer.step()
    assert torch.equal(full(bad), before["bad"])
    assert not torch.equal(full(good), before["good"])
    assert optimizer.skipped() == {"bad": 1}
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.skipped() == {"bad": 1}


def check_pending_sum(rank):
    mesh = init_device_mesh("cpu", (2,))
    p = nn.Parameter(DTensor.from_local(torch.ones(4, 4), mesh, [Partial()]))
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"up has placement P\S*.* on .*DeviceMesh"):
        polarlight.SpectralOptimizer([("up", p)], rule=polarlight.rules.muon()).step()
    q = nn.Parameter(on_rows((4, 4), mesh))
    q.grad = q.detach().clone()
    polarlight.SpectralOptimizer([("up", q)], rule=polarlight.rules.muon()).step()


def check_versions(rank):
    """Another version of the library on one process, which may plan otherwise."""
    params = parameters(init_device_mesh("cpu", (2,)))
    optimizer = polarlight.SpectralOptimizer(list(zip("ab", params, strict=True)), rule=MUON)
    kept, polarlight.__version__ = polarlight.__version__, f"9.{rank}"
    before = [full(p) for p in params]
    with pytest.raises(ValueError, match=r"the library is \[polarlight 9.0.* on rank 0 .*9.1"):
        optimizer.step()
    polarlight.__version__ = kept
    assert all(torch.equal(full(p), b) for p, b in zip(params, before, strict=True))


def check_options(rank):
    params = parameters(init_device_mesh("cpu", (2,)))
    executor = polarlight.Sharded(options=Options(spread=1.1 + rank))
    optimizer = polarlight.SpectralOptimizer(params, rule=MUON, executor=executor)
    with pytest.raises(ValueError, match=r"spread=1.1.*on rank 0.*spread=2.1.*on rank 1"):
        optimizer.step()


MUON = polarlight.rules.muon()

LEFT, NOTICED = 0, 9
"""Exit codes: of the process that dies without a word, and of the one that says so."""


class OutOfMemory:
    """An allocation fails when the first matrices have arrived."""

    def directions(self, jobs):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")


def run_out_of_memory_in_the_middle(rank):
    """Of a step; the process that did says so, and the other one knows which it was."""
    params = parameters(init_device_mesh("cpu", (2,)))
    executor = polarlight.Sharded(OutOfMemory()) if rank else polarlight.Sharded()
    optimizer = polarlight.SpectralOptimizer(params, rule=MUON, executor=executor)
    before = [p.to_local().detach().clone() for p in params]
    kind = torch.OutOfMemoryError if rank else RuntimeError
    with pytest.raises(kind) as error:
        optimizer.step()
    assert all(torch.equal(p.to_local(), b) for p, b in zip(params, before, strict=True))
    said = "".join([str(error.value), *getattr(error.value, "__notes__", ())])
    if rank:
        assert "rank 1 failed in the middle of a step that it shares with rank 0" in said, said
        with pytest.raises(RuntimeError, match=r"an earlier step failed .*OutOfMemoryError"):
            polarlight.SpectralOptimizer(params, rule=MUON).step()
        os._exit(LEFT)
    assert "Rank 1 raised OutOfMemoryError: Tried to allocate 20.00 GiB." in said, said
    assert "weights of this process are as before" in said
    os._exit(NOTICED)


def every(rank):
    checks = (check_disagreement, check_nan, check_nothing_to_do, check_pending_sum)
    checks += (check_versions, check_options)
    for check in (*checks, run_out_of_memory_in_the_middle):
        check(rank)


def test_faults_raise_on_all_processes_also_when_one_dies():
    with pytest.raises(ProcessExitedException, match=f"exit code {NOTICED}"):
        run(2, every)
