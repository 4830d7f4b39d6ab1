"""Processes that bring different gradients to a step: told so on all of them, in time, unharmed."""

import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import polarlight
from polarlight.diagnostics.sharding import full
from tests.distributed.processes import TIMEOUT, run
from tests.distributed.test_traffic import Received

SOON = TIMEOUT.total_seconds() / 3
"""Seconds: far below the time-out, and far above what a loaded machine takes."""


def values(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ROWS = (Shard(0),)


def on(mesh, shape, placements=ROWS, seed=0):
    return distribute_tensor(values(shape, seed), mesh, list(placements), src_data_rank=None)


def parameters(mesh, shapes, placements=ROWS):
    found = [nn.Parameter(on(mesh, shape, placements, i)) for i, shape in enumerate(shapes)]
    for i, p in enumerate(found):
        p.grad = on(mesh, p.shape, placements, 10 + i)
    return found


def muon(params, **options):
    named = [(f"p{i}", p) for i, p in enumerate(params)]
    return polarlight.SpectralOptimizer(
        named, rule=polarlight.rules.muon(), view=polarlight.view.Whole(), **options
    )


def refused(optimizer, params, match, kind=ValueError):
    """A step raises an error soon and moves neither weights nor state."""
    optimizer.state_dict()  # state exists from here on
    tensors = [*params, *(x for p in params for x in optimizer.state[p].values())]
    before = [local(x).clone() for x in tensors]
    begun = time.monotonic()
    with pytest.raises(kind, match=match):
        optimizer.step()
    assert time.monotonic() - begun < SOON
    assert all(torch.equal(local(x), b) for x, b in zip(tensors, before, strict=True))


def local(x):
    return (x.to_local() if isinstance(x, DTensor) else x).detach()


def a_rank_without_gradients(rank, world):
    """Experts that saw no token on one process; and it is so in a later step, too."""
    params = parameters(init_device_mesh("cpu", (world,)), [(8, 4), (6, 6)])
    optimizer = muon(params)
    optimizer.step()
    kept = [p.grad for p in params]
    if rank == world - 1:
        for p in params:
            p.grad = None
    refused(
        optimizer, params, f"p0 has a gradient on rank 0, p0 has no gradient on rank {world - 1}"
    )
    for p, g in zip(params, kept, strict=True):
        p.grad = g
    optimizer.step()  # nothing is left of it


def two_known_sets_of_equal_sizes(rank, world):
    """Plans of both sets are there already; shards of p0 and p1 would be mixed without an error."""
    params = parameters(init_device_mesh("cpu", (world,)), [(8, 4), (8, 4)])
    optimizer, kept = muon(params), [p.grad for p in params]
    for active in (0, 1):
        for k, p in enumerate(params):
            p.grad = kept[k] if k == active else None
        optimizer.step()
    for k, p in enumerate(params):
        p.grad = kept[k] if k == rank % 2 else None
    refused(optimizer, params, "p0 has a gradient on rank 0, p0 has no gradient on rank 1")


def elementwise_parameters_are_compared_too(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    p = nn.Parameter(on(mesh, (8,)))
    p.grad = on(mesh, (8,)) if rank else None
    rule = polarlight.rules.AdamWRule()
    optimizer = polarlight.SpectralOptimizer([("b", p)], rule=rule)
    refused(optimizer, [p], "b has no gradient on rank 0, b has a gradient on rank 1")


def others_hear_of_it_over_another_mesh(rank, world):
    """Rows and columns of a 2 x 2 mesh; only the last two processes disagree, on their row."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
    (a,) = parameters(mesh["columns"], [(8, 4)])
    (b,) = parameters(mesh["rows"], [(6, 6)])
    optimizer = muon([a, b])
    optimizer.step()
    if rank == 3:
        a.grad = None
    heard = "p0 has a gradient on rank 2" if rank >= 2 else "a mesh that begins with rank 2"
    refused(optimizer, [a, b], heard)


def missing_counts_as_zero(rank, world):
    """The step that all processes make with a gradient of zero, shard for shard."""
    mesh = init_device_mesh("cpu", (world,))
    ours, theirs = (with_a_vector(mesh) for _ in range(2))
    optimizers = [zero_where_missing(params) for params in (ours, theirs)]
    for step in range(3):
        lacking = rank == step % world
        for p, q in zip(ours[::3], theirs[::3], strict=True):
            p.grad = None if lacking else on(mesh, p.shape, seed=20 + step)
            q.grad = torch.zeros_like(q) if lacking else on(mesh, q.shape, seed=20 + step)
        ours[2].grad = theirs[2].grad = None  # on all processes: it stays as it is
        for optimizer in optimizers:
            optimizer.step()
        assert (ours[0].grad is None) == lacking
    assert len(optimizers[0].executor.plans()) == 1
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(local(p), local(q))


def with_a_vector(mesh):
    return [*parameters(mesh, [(8, 4), (6, 6), (8, 4)]), nn.Parameter(on(mesh, (6,)))]


def zero_where_missing(params):
    groups = [
        {"params": list(zip("abc", params[:3], strict=True)), "rule": RULE},
        {"params": [("d", params[3])], "rule": polarlight.rules.AdamWRule()},
    ]
    executor = polarlight.Sharded(missing_gradients="zero")
    return polarlight.SpectralOptimizer(groups, executor=executor)


RULE = polarlight.rules.normuon()


def a_nan_on_one_of_equal_plain_parameters(rank, world):
    """`Sharded(group)` under DDP, of which the gradients were not averaged yet."""
    params = [nn.Parameter(values((8, 4), i)) for i in range(2)]
    executor = polarlight.Sharded(group=dist.group.WORLD)
    optimizer = muon(params, executor=executor, lr=0.1)
    for p in params:
        p.grad = values((8, 4), 7)
    if rank == 1:
        params[0].grad[0, 0] = float("nan")
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert torch.equal(params[0], before[0])
    assert not torch.equal(params[1], before[1])
    assert optimizer.skipped() == {"p0": 1}
    optimizer.nonfinite = polarlight.NonFinite.RAISE
    with pytest.raises(FloatingPointError, match="gradient of p0 is not finite"):
        optimizer.step()
    optimizer.nonfinite = polarlight.NonFinite.PROPAGATE
    optimizer.step()
    assert params[1].isfinite().all()


def a_nan_in_a_tensor_of_one_process(rank, world):
    """Beside shards: under RAISE all processes refuse the step, the others hear of its rank."""
    shards = parameters(init_device_mesh("cpu", (world,)), [(8, 4)])
    own = nn.Parameter(values((6,), 3))
    own.grad = torch.full((6,), float("nan" if rank else 1))
    groups = [
        {"params": [("a", shards[0])], "rule": polarlight.rules.muon()},
        {"params": [("norm", own)], "rule": polarlight.rules.AdamWRule()},
    ]
    optimizer = polarlight.SpectralOptimizer(groups, nonfinite=polarlight.NonFinite.RAISE)
    told = "the gradient of norm is not finite" if rank else "a gradient on rank 1 is not finite"
    refused(optimizer, [*shards, own], told, FloatingPointError)
    optimizer.nonfinite = polarlight.NonFinite.SKIP
    before = own.detach().clone()
    optimizer.step()
    assert torch.equal(own, before) == bool(rank)
    assert shards[0].to_local().isfinite().all()


def a_nan_in_a_shard(rank, world):
    """RAISE names its rank on all; PROPAGATE lets it into its own parameter alone."""
    params = parameters(init_device_mesh("cpu", (world,)), [(8, 4), (8, 4), (6, 6)])
    if rank == 1:
        params[1].grad.to_local()[0] = float("nan")
    optimizer = muon(params, nonfinite=polarlight.NonFinite.RAISE)
    told = r"gradient of p1 is not finite \(as seen on rank 1\)"
    refused(optimizer, params, told, FloatingPointError)
    optimizer.nonfinite = polarlight.NonFinite.PROPAGATE
    optimizer.step()
    assert [bool(full(p).isfinite().all()) for p in params] == [True, False, True]


def a_refused_gradient_is_heard_of_over_another_mesh(rank, world):
    """Rows and columns of a 2 x 2 mesh; the NaN is on the last row, and all raise."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
    (a,) = parameters(mesh["columns"], [(8, 4)])
    (b,) = parameters(mesh["rows"], [(6, 6)])
    optimizer = muon([a, b], nonfinite=polarlight.NonFinite.RAISE)
    optimizer.step()
    if rank == 3:
        a.grad.to_local()[0] = float("inf")
    heard = "gradient of p0 .*seen on rank 3" if rank >= 2 else "a gradient on rank 3 is not finite"
    refused(optimizer, [a, b], heard, FloatingPointError)


def plain_parameters_that_differ(rank, world):
    """Shards of another engine under `Sharded(group)`: rank 1 would get the direction of rank 0.

    A second step is refused too: nothing was agreed on in the first one.
    """
    p = nn.Parameter(values((8, 4), rank))
    p.grad = values((8, 4), 7)
    optimizer = muon([p], executor=polarlight.Sharded(group=dist.group.WORLD))
    for _ in range(2):
        refused(optimizer, [p], "p0 is replicated .* differ between rank 0 and rank 1")


def pending_gradients(rank, world):
    """Sums that are still to be reduced: once per step, and `grad` is what it was."""
    mesh = init_device_mesh("cpu", (world,))
    pair = [parameters(mesh, [(8, 4), (6, 6)], [Replicate()]) for _ in range(2)]
    part = values((8, 4), 3) * (1 + rank)
    pair[0][0].grad = DTensor.from_local(part, mesh, [Partial()], run_check=False)
    total = sum(values((8, 4), 3) * (1 + r) for r in range(world))
    pair[1][0].grad = DTensor.from_local(total, mesh, [Replicate()], run_check=False)
    kept = pair[0][0].grad
    counts = []
    for params in pair:
        with Received() as found:
            muon(params).step()
        counts.append(found.counts)
    assert counts[0]["all_reduce"] - counts[1]["all_reduce"] == 1  # the gradient itself
    # One flag per parameter is reduced afterwards: whether the sum is finite.
    assert counts[0]["allreduce_"] - counts[1]["allreduce_"] == 1
    assert pair[0][0].grad is kept
    for p, q in zip(*pair, strict=True):
        torch.testing.assert_close(full(p), full(q), rtol=0, atol=1e-6)
    kept.to_local()[:] = float("inf")
    optimizer = muon(pair[0])
    optimizer.step()
    assert optimizer.skipped() == {"p0": 1}


def each(rank, world, checks):
    for check in checks:
        check(rank, world)


TWO = [
    a_rank_without_gradients,
    two_known_sets_of_equal_sizes,
    elementwise_parameters_are_compared_too,
    missing_counts_as_zero,
    a_nan_on_one_of_equal_plain_parameters,
    a_nan_in_a_tensor_of_one_process,
    a_nan_in_a_shard,
    plain_parameters_that_differ,
    pending_gradients,
]


def test_two_processes_with_different_gradients():
    run(2, each, 2, TWO)


def test_four_processes_with_different_gradients():
    checks = [others_hear_of_it_over_another_mesh, a_refused_gradient_is_heard_of_over_another_mesh]
    run(4, each, 4, [*checks, a_rank_without_gradients])
