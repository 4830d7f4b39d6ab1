"""Rounds over real processes are those of simulated clients, sharded workers' too."""

import re
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard

import polarlight
from polarlight.diagnostics.sharding import full, gradient, shard_like
from polarlight.execution.sharded import faults
from tests.distributed.layouts import Parameters
from tests.distributed.processes import printed, run
from tests.integrations.running import EXAMPLES, example

SHAPES = [(12, 4), (4, 12), (10, 5), (1, 4)]
"""Uneven and empty shards among them."""

EVERY = 3


def begin(mesh=None, count=1, group=None):
    """Models, one inner optimizer each, and their rounds."""
    models = [
        Parameters(torch.float64, mesh, None if mesh is None else [Shard(0)], SHAPES)
        for _ in range(count)
    ]
    inner = [polarlight.Aurora(m.parameters(), lr=0.1, weight_decay=0.1) for m in models]
    return models, inner, polarlight.diloco.Outer(*models, every=EVERY, group=group)


def train(run_, workers, steps):
    models, inner, rounds = run_
    for step in steps:
        for worker, model, optimizer in zip(workers, models, inner, strict=True):
            for i, p in enumerate(model.parameters()):
                whole = torch.empty(p.shape, dtype=p.dtype)
                p.grad = shard_like(gradient(whole, seed=1000 * worker + 10 * step + i), p)
            optimizer.step()
        rounds.step()


def simulated(count, steps):
    """The first client's model, of several in one process."""
    run_ = begin(count=count)
    train(run_, range(count), range(steps))
    return run_[0][0]


def assert_same(model, expected):
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(full(p).detach(), q.detach(), rtol=0, atol=1e-12)


def everything(rank, folder):
    four_workers(rank)
    two_sharded_workers(rank, folder)
    a_worker_with_a_nan(rank)
    a_worker_with_an_infinite_weight(rank)
    unequal_starts(rank)
    a_worker_that_fails(rank)  # the last: the group is of no use after it


def four_workers(rank):
    run_ = begin(group=dist.group.WORLD)
    train(run_, [rank], range(2 * EVERY))
    assert_same(run_[0][0], simulated(4, 2 * EVERY))


def two_sharded_workers(rank, folder):
    """Saved in the middle of a round by DCP, every worker's own state under its own name."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("workers", "shard"))
    worker, group = mesh.get_local_rank("workers"), mesh["workers"].get_group()
    first = begin(mesh["shard"], group=group)
    train(first, [worker], range(EVERY + 1))
    dcp.save(states(first, worker), checkpoint_id=folder)
    second = begin(mesh["shard"], group=group)
    loaded = states(second, worker)
    dcp.load(loaded, checkpoint_id=folder)
    second[0][0].load_state_dict(loaded[f"model {worker}"])
    second[1][0].load_state_dict(loaded[f"inner {worker}"])
    second[2].load_state_dict(loaded["outer"])
    train(second, [worker], range(EVERY + 1, 2 * EVERY))
    assert_same(second[0][0], simulated(2, 2 * EVERY))


def a_worker_with_a_nan(rank):
    """In one shard of worker 1: all its shards are left out, and it goes on from the anchor."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("workers", "shard"))
    worker = mesh.get_local_rank("workers")
    run_ = begin(mesh["shard"], group=mesh["workers"].get_group())
    train(run_, [worker], range(EVERY - 1))
    if rank == 3:
        with torch.no_grad():
            run_[0][0].p0.to_local()[:] = float("nan")
    run_[2].end_round()
    alone = begin()
    train(alone, [0], range(EVERY - 1))
    alone[2].end_round()
    assert_same(run_[0][0], alone[0][0])
    assert run_[2].left_out == 1


def a_worker_with_an_infinite_weight(rank):
    """Or one that overflows in the sum: plain workers, each of which is a process."""
    run_ = begin(group=dist.group.WORLD)
    train(run_, [0], range(EVERY - 1))
    if rank in (1, 2):
        with torch.no_grad():
            run_[0][0].p0[0] = float("inf") if rank == 1 else -1e308 * 1.79
    run_[2].end_round([1e3] if rank == 2 else None)
    for p in run_[0][0].parameters():
        assert p.isfinite().all()


def a_worker_that_fails(rank):
    """One contribution raises an error; the others are told, and leave their weights alone."""
    run_ = begin(group=dist.group.WORLD)
    train(run_, [rank], range(EVERY - 1))
    before = [p.detach().clone() for p in run_[0][0].parameters()]
    faults.ANSWER_SECONDS = 1.0
    if rank == 2:
        run_[2]._contribution = out_of_memory
    with pytest.raises(torch.OutOfMemoryError if rank == 2 else RuntimeError) as error:
        run_[2].end_round()
    assert all(torch.equal(p, b) for p, b in zip(run_[0][0].parameters(), before, strict=True))
    if rank == 0:
        assert "Rank 2 raised OutOfMemoryError: no memory" in str(error.value), error.value
    with pytest.raises(RuntimeError, match="an earlier step failed"):
        run_[2].end_round()


def out_of_memory(anchor, parameter):
    raise torch.OutOfMemoryError("no memory")


def states(run_, worker):
    (model,), (inner,), rounds = run_
    own = {f"model {worker}": model.state_dict(), f"inner {worker}": inner.state_dict()}
    return own | {"outer": rounds.state_dict()}


def unequal_starts(rank):
    models, _, rounds = begin(group=dist.group.WORLD)
    with torch.no_grad():
        models[0].p1.add_(rank == 2)
    rounds = polarlight.diloco.Outer(*models, every=1, group=dist.group.WORLD)
    with pytest.raises(RuntimeError, match=r"begin alike: p1 .* on its process 2"):
        rounds.step()
    different = polarlight.diloco.Outer(
        *begin()[0], every=2 if rank == 3 else 1, group=dist.group.WORLD
    )
    expected = pytest.raises(RuntimeError, match=r"every is 1 .* and 2 on its process 3")
    with expected if rank != 3 else nullcontext():
        different.step()
    if rank == 3:
        with expected:
            different.step()


def test_four_processes_are_four_clients_or_two_sharded_ones(tmp_path):
    run(4, everything, tmp_path)


def test_the_example_prints_equal_losses_alone_and_on_two_processes(tmp_path, capsys):
    _, losses = example("muloco").main()
    assert losses[-1] < 0.5 * losses[0]
    assert "after 6 averages" in capsys.readouterr().out
    out = "".join(printed(2, EXAMPLES / "muloco.py", tmp_path))
    ends = re.findall(r"loss [\d.]+ -> ([\d.]+) after 6 averages", out)
    assert len(ends) == 2
    assert f"{losses[-1]:.3f}" in ends
