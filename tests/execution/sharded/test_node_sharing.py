"""Matrices that processes of a node compute together: which ones, by whom, in which order."""

import random
from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import polarlight as pl
from benchmarks.plans_at_scale import MODELS, plans_of
from polarlight.execution.sharded.forecast import forecast, summary
from polarlight.execution.sharded.layouts import Layout, Split
from polarlight.execution.sharded.node_sharing import node_groups
from polarlight.execution.sharded.options import Options
from polarlight.execution.sharded.plan import ShardedPlan
from polarlight.execution.sharded.schedule import ProcessSchedule
from polarlight.execution.sharded.specs import MATRIX
from polarlight.execution.sharded.traffic import traffic
from tests.execution.sharded.exchanges import largest_exchange_bytes
from tests.execution.sharded.test_plan import exchanged
from tests.execution.sharded.test_plan_scale import llama_of_two_layers

ROWS = (Split(0),)


def plan_of(shapes, mesh=(16,), splits=ROWS, rule=None, ranks=None, **options):
    """A plan of parameters of these shapes, in bfloat16; limits on sizes are off by default."""
    options = {"row_bytes": 0, "sum_weight": 1e9, **options}
    tensors = [torch.empty(shape, device="meta", dtype=torch.bfloat16) for shape in shapes]
    view = pl.view.Whole()
    group = {"params": tensors, "rule": rule or pl.rules.aurora(), "view": view}
    lay = lambda name, p: Layout(tuple(p.shape), mesh, splits)  # noqa: E731
    (plan,) = forecast([group], lay, Options(**options))
    if ranks is None:
        return plan
    return ShardedPlan(plan.params, plan.coordinates, plan.options, ranks)


LAYER = [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)]
"""Matrices of Llama-3-8B; the second costs a thirtieth of the last two."""


@pytest.mark.parametrize(("layout", "part"), [("512", 0.61), ("1024", 0.554), ("4096", 0.554)])
def test_the_busiest_process_of_a_large_mesh_has_a_part_of_what_an_owner_has(layout, part):
    """As `benchmarks/rows_per_node.py` counts it: 0.55 by eight, where processes are idle."""
    (plan,) = plans_of(MODELS["llama-3-8b"](), layout)
    (alone,) = plans_of(MODELS["llama-3-8b"](), layout, Options(node_size=1))
    assert not alone.shared
    assert max(plan.loads) / max(alone.loads) == pytest.approx(part, abs=2e-3)
    assert len(plan.shared) == 96


@pytest.mark.parametrize("layout", ["1024", "copies 16 x 64", "copies 128 x 8"])
def test_partners_and_buckets_stay_within_their_limits(layout):
    (plan,) = plans_of(llama_of_two_layers(), layout)
    moved = traffic(plan)
    assert max(len(t.peers) for t in moved) <= 128
    assert max(t.at_once for t in moved) <= 2 * plan.options.bucket_bytes
    busiest = max(range(plan.size), key=plan.loads.__getitem__)
    schedule = ProcessSchedule(plan, busiest)
    assert largest_exchange_bytes(schedule) <= 2 * plan.options.bucket_bytes
    found = summary(plan)
    assert found.matrices == 14
    assert len(found.shared) == 6
    assert found.shared_sums == max(kind.sum_bytes for kind in plan.kinds)
    assert "6 parameters are computed by 8 processes of a node together" in str(found)


@pytest.mark.parametrize(
    ("name", "shapes", "options"),
    [
        ("as many as processes", [(14336, 4096)] * 16, {}),
        ("squares", [(4096, 4096)] * 2, {}),
        ("small", [(14336, 4096)], {"row_bytes": 2**30}),
        ("a cheap one beside a square", [(4096, 4096), (1024, 4096)], {}),
        ("one process per node", [(14336, 4096)], {"node_size": 1}),
        ("links within a node that cost too much", [(14336, 4096)], {"node_sum_weight": 10.0}),
        ("a rule that needs all rows", [(14336, 4096)], {"rule": pl.rules.soap()}),
        ("a vector", [(14336, 1)], {"mesh": (1,)}),
    ],
)
def test_nothing_is_shared_where_it_does_not_pay(name, shapes, options):
    assert not plan_of(shapes, **options).shared


def test_costly_matrices_are_shared_by_as_many_as_pay():
    """One tall and one wide matrix on 16 processes: eight each; four each of four of them."""
    for copies, count in ((1, 8), (2, 4)):
        plan = plan_of(copies * LAYER[2:])
        assert [len(shared.ranks) for shared in plan.shared] == [count] * 2 * copies
        assert [kind.matrix.part.by_columns for kind in plan.kinds] == copies * (
            [False] * count + [True] * count
        )
        assert sorted(plan.owners) == list(range(16))


def test_rows_held_in_full_are_computed_where_they_are():
    """On eight processes with an eighth of the rows each, which need the sums alone."""
    plan = plan_of(LAYER[2:3], mesh=(8,))
    assert not any(plan.gathered)
    assert summary(plan).local == 1
    numbers_of_rest = 7 * 8  # to the other processes, by the first one
    sums = plan.kinds[0].sum_bytes
    assert {t.sent for t in traffic(plan)} == {sums, sums + numbers_of_rest}
    copies = plan_of(LAYER[2:3], splits=(None,))
    assert len(copies.shared) == 1
    assert not any(copies.gathered)


def test_a_matrix_that_a_process_holds_in_full_is_shared_if_that_is_cheaper():
    """Two experts, each whole on a process: bytes of a part are weighed against flops."""
    held = {"mesh": (8,), "splits": (Split(0),)}
    assert plan_of([(2, 14336, 4096)], **held).shared
    assert not plan_of([(2, 14336, 4096)], flops_per_byte=2e4, **held).shared


@pytest.mark.parametrize("seed", range(8))
def test_the_busiest_process_is_never_busier_than_with_one_owner_each(seed):
    draw = random.Random(seed)
    sizes = [256, 1024, 1536, 4096, 14336]
    shapes = [tuple(draw.choices(sizes, k=2)) for _ in range(draw.randint(1, 40))]
    mesh, splits = draw.choice([((16,), (Split(0),)), ((3, 8), (None, Split(1))), ((6,), (None,))])
    plan = plan_of(shapes, mesh, splits, node_size=draw.choice([2, 6, 8]))
    alone = plan_of(shapes, mesh, splits, node_size=1)
    assert max(plan.loads) <= max(alone.loads) * (1 + 1e-12)
    if plan.shared:
        assert max(plan.loads) < 0.9 * max(alone.loads)


MESHES = [
    ((4,), (Split(0),)),
    ((4,), (Split(1),)),
    ((4,), (None,)),
    ((2, 2), (None, Split(0))),
    ((2, 2), (Split(0, 2), Split(0))),
]
meshes = pytest.mark.parametrize(("mesh", "splits"), MESHES, ids=str)
UNEVEN = [(91, 6), (6, 75), (5, 5), (2, 21, 4)]


def uneven(mesh, splits, **options):
    rule = pl.rules.normuon()
    free = {"flops_per_byte": 0.0, "bucket_bytes": 700, "node_size": 2}
    return plan_of(UNEVEN, mesh, splits, rule, **{**free, **options})


@meshes
def test_parts_are_all_of_a_matrix_and_its_row_buffers(mesh, splits):
    plan = uneven(mesh, splits)
    assert len(plan.shared) >= 2
    for shared in plan.shared:
        assert len(set(shared.ranks)) == 2
        parts = [plan.matrices[n] for n in shared.numbers]
        for name in parts[0].blocks:
            whole = plan.params[parts[0].param].layouts[name].shape
            count = torch.zeros(whole, dtype=torch.int)
            for part in parts if name not in parts[0].part.common else parts[:1]:
                block = part.blocks[name]
                every = zip(block.starts, block.lengths, strict=True)
                count[tuple(slice(s, s + n) for s, n in every)] += 1
            matrices = count.unbind() if count.ndim == 3 else [count]
            assert sorted({int(m.min()) for m in matrices}) in ([0, 1], [1])
            assert count.max() == 1
        assert [parts[0].is_written("momentum_sizes"), parts[1].is_written("momentum_sizes")] == [
            True,
            False,
        ]


@meshes
@pytest.mark.parametrize("peers", [128, 1])
def test_fragments_of_parts_that_one_process_sends_are_those_that_another_expects(
    mesh, splits, peers
):
    plan = uneven(mesh, splits, peers=peers)
    schedules = [ProcessSchedule(plan, rank) for rank in range(plan.size)]
    assert len(plan.buckets) > 1
    exchanged_bytes = 0
    for mine, theirs in product(schedules, schedules):
        for here, there in zip(mine.buckets, theirs.buckets, strict=True):
            for way in ("gather", "scatter"):
                exchanged_bytes += exchanged(here, there, way, mine.rank, theirs.rank)
    written = {}
    for schedule in schedules:
        for bucket in schedule.buckets:
            for _, broadcasts in bucket.rounds:
                for fragment in (f for b in broadcasts for f in b.fragments):
                    written.setdefault((fragment.matrix, fragment.name), set()).add(schedule.rank)
    assert exchanged_bytes > 0 or written


@meshes
def test_processes_of_a_node_have_the_same_matrices_in_each_bucket_in_one_order(mesh, splits):
    """Else one would wait for the sums of a matrix at which the other one is not."""
    plan = uneven(mesh, splits)
    for active in (None, {0, 1}, {0, 3, 4}):
        orders = {}
        for rank in range(plan.size):
            schedule = ProcessSchedule(plan, rank)
            schedule = schedule if active is None else schedule.masked(active)
            first = {n: s.numbers[0] for s in plan.shared for n in s.numbers}
            order = [
                [first[n] for n in bucket.matrices if n in schedule.shared]
                for bucket in schedule.buckets
            ]
            orders.setdefault(rank // 2, []).append(order)
        assert all(order == some[0] for some in orders.values() for order in some)
        assert any(some[0] != [[]] * len(plan.buckets) for some in orders.values())


def test_groups_are_neighbours_by_global_rank_within_a_node():
    assert node_groups(range(8), 4, 2) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert node_groups(range(6), 4, 4) == [(0, 1, 2, 3)]
    assert node_groups([5, 1, 3, 0, 2, 4], 2, 2) == [(3, 1), (4, 2), (5, 0)]
    assert node_groups([0, 8, 16], 8, 2) == []


def test_a_mesh_with_one_process_of_each_node_shares_nothing():
    apart = plan_of(LAYER[2:3], ranks=tuple(range(0, 128, 8)))
    assert not apart.shared
    assert plan_of(LAYER[2:3], ranks=tuple(range(100, 116))).shared


def test_matrices_beside_experts_that_are_planned_later_have_one_owner():
    """Alone they would be shared; experts fill the other processes anyway."""

    def dense():
        yield "model.layers.0.self_attn.o_proj.weight", (1024, 4096)

    def shapes():
        yield "model.layers.0.mlp.experts.down_proj", (64, 1024, 4096)
        yield from dense()

    assert plans_of(dense(), "experts 4 x 4", Options())[0].shared
    first, second = plans_of(shapes(), "experts 4 x 4", Options())
    assert not first.shared
    assert first.later_load > max(first.loads)
    assert not second.shared
    assert second.later_load == 0


def test_plans_of_other_options_have_other_fingerprints():
    plans = [plan_of(LAYER), plan_of(LAYER, node_size=4), plan_of(LAYER, node_sum_weight=0.5)]
    assert len({plan.fingerprint for plan in plans}) == 3
    assert plan_of(LAYER).fingerprint == plans[0].fingerprint


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="node_size must be >= 1, got 0"):
        Options(node_size=0)
    for weight in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="node_sum_weight must be >= 0 and finite, got"):
            Options(node_sum_weight=weight)


def test_the_executor_plans_what_is_forecast_and_explain_says_it():
    """On a fake process group of 64, with parameters that `fully_shard` made."""
    dist.init_process_group("fake", rank=5, world_size=64, store=FakeStore())
    try:
        model = nn.Sequential(nn.Linear(512, 1536, bias=False), nn.Linear(1536, 512, bias=False))
        fully_shard(model, mesh=init_device_mesh("cpu", (64,)))
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer = pl.Muon(model.parameters(), lr=0.1)
        (expected,) = forecast(optimizer.param_groups)
        assert len(expected.shared) == 2
        text = " ".join(str(pl.explain(optimizer)).split())
        assert "2 matrices shared by a mesh of 64 processes" in text
        assert "2 parameters are computed by 8 processes of a node together" in text
        optimizer.step()
        (plan,) = optimizer.executor.plans()
        assert (plan.owners, plan.shared) == (expected.owners, expected.shared)
        assert plan.params[0].layouts[MATRIX].mesh == (64,)
    finally:
        dist.destroy_process_group()
