"""Copies of parameters under HSDP and DDP: the same bits on all processes, for many steps."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import polarlight
from polarlight.execution.param_task import to_local
from polarlight.execution.sharded import collectives
from polarlight.execution.sharded.disagreement import checksum
from polarlight.execution.sharded.options import Options
from tests.distributed.processes import run

SHAPES = [(12, 4), (4, 12), (6, 6), (10, 5), (16, 2), (8,)]
"""Uneven shards, tall matrices that are computed by rows, a vector under AdamW."""

ROWS = Options(row_bytes=0, sum_weight=0)
"""Whatever can be is computed by rows."""


def values(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def built(layout, rule):
    """Parameters and an optimizer: on a mesh of two copies of two shards, or copies on all."""
    mesh = init_device_mesh("cpu", (2, 2)) if layout == "HSDP" else None
    params = []
    for i, shape in enumerate(SHAPES):
        whole = values(shape, i)
        if mesh is not None:
            whole = distribute_tensor(whole, mesh, [Replicate(), Shard(0)], src_data_rank=None)
        params.append(nn.Parameter(whole))
    group = None if layout == "HSDP" else dist.group.WORLD
    named = [(f"p{i}", p) for i, p in enumerate(params)]
    groups = [
        {"params": named[:-1], "rule": rule, "view": polarlight.view.Whole()},
        {"params": named[-1:], "rule": polarlight.rules.AdamWRule()},
    ]
    executor = polarlight.Sharded(group=group, options=ROWS, weights_last=group is None)
    return params, polarlight.SpectralOptimizer(groups, lr=0.02, executor=executor)


def steps(params, optimizer, count):
    """Gradients differ from copy to copy, as those of other batches, and are averaged first."""
    for step in range(count):
        for i, p in enumerate(params):
            own = values(p.shape, 10_000 * dist.get_rank() + 10 * step + i)
            dist.all_reduce(own)
            placed = getattr(p, "placements", None)
            p.grad = (
                own
                if placed is None
                else distribute_tensor(own, p.device_mesh, placed, src_data_rank=None)
            )
        optimizer.step()


def checksums(params, optimizer):
    """Of weights and buffers, from the processes whose shards should be the same."""
    tensors = [x for p in params for x in (p, *optimizer.state[p].values())]
    own = torch.stack([checksum(to_local(x)) for x in tensors])
    found = [torch.empty_like(own) for _ in range(4)]
    dist.all_gather(found, own)
    return found


def copies_are_equal(found, layout):
    alike = [(0, 2), (1, 3)] if layout == "HSDP" else [(0, 1), (0, 2), (0, 3)]
    return all(torch.equal(found[a], found[b]) for a, b in alike)


AURORA, NORMUON = polarlight.rules.aurora(), polarlight.rules.normuon()
EVERY = [(layout, rule) for layout in ("HSDP", "DDP") for rule in (AURORA, NORMUON)]


def check_many_steps(rank, count, cases=EVERY):
    for layout, rule in cases:
        params, optimizer = built(layout, rule)
        steps(params, optimizer, count)
        plans = optimizer.executor.plans()
        assert bool(plans[0].rowwise) == (layout == "HSDP")
        assert copies_are_equal(checksums(params, optimizer), layout), (layout, rule.name)


def check_another_order(rank):
    """A backend of which the groups of the two copies add in different orders."""
    all_reduce = dist.all_reduce

    def reordered(x, op=dist.ReduceOp.SUM, group=None, **options):
        handle = all_reduce(x, op, group=group, **options)
        if rank >= 2 and x.is_floating_point() and dist.get_world_size(group) == 2:
            x.mul_(1 + 2**-23)
        return handle

    for alike, equal in ((True, False), (False, True)):
        collectives.adds_in_order_of_ranks = lambda group, alike=alike: alike
        params, optimizer = built("HSDP", polarlight.rules.aurora())
        collectives.dist.all_reduce = reordered
        steps(params, optimizer, 5)
        collectives.dist.all_reduce = all_reduce
        assert copies_are_equal(checksums(params, optimizer), "HSDP") == equal


def some(rank):
    check_many_steps(rank, 10, [("HSDP", AURORA), ("DDP", NORMUON)])
    check_another_order(rank)


def test_copies_stay_equal_also_where_a_backend_adds_in_another_order():
    run(4, some)


@pytest.mark.slow
def test_copies_stay_equal_to_the_bit_over_a_thousand_steps():
    run(4, check_many_steps, 1000)
