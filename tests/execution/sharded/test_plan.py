"""Plans: balanced, local where they can be, the same for everyone, and the real ones."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import polarlight
from benchmarks.plans_at_scale import MODELS, plans_of
from polarlight.execution.cost import flops
from polarlight.execution.sharded.forecast import forecast, summary
from polarlight.execution.sharded.layouts import Layout, Split
from polarlight.execution.sharded.memory import message_count, peak_bytes
from polarlight.execution.sharded.options import Options
from polarlight.execution.sharded.schedule import ProcessSchedule
from polarlight.execution.sharded.specs import MATRIX
from polarlight.execution.sharded.traffic import traffic


def small(mesh, splits, shapes, **options):
    """A plan for parameters of these shapes under NorMuon, in float32."""
    params = [(f"p{i}", torch.empty(shape, device="meta")) for i, shape in enumerate(shapes)]
    names, tensors = zip(*params, strict=True)
    rule, view = polarlight.rules.normuon(), polarlight.view.Whole()
    group = {"params": tensors, "param_names": names, "rule": rule, "view": view}
    lay = lambda name, p: Layout(tuple(p.shape), mesh, splits)  # noqa: E731
    (plan,) = forecast([group], lay, Options(**options))
    return plan


@pytest.mark.parametrize(
    ("model", "layout"),
    [("dense-1.1b", "8"), ("llama-3-8b", "32"), ("qwen3-30b-a3b", "copies 8 x 64")],
)
def test_published_shapes_are_spread_evenly(model, layout):
    (plan,) = plans_of(MODELS[model](), layout)
    found = summary(plan)
    assert found.balance <= 1.1
    assert found.sent < found.all_gather / 3
    # Row scales travel with their matrices: a number per row of thousands.
    assert found.mean_bytes <= found.exchange * 1.01


MESHES = [
    ((4,), (Split(0),)),
    ((4,), (None,)),
    ((2, 2), (None, Split(0))),
    ((2, 2), (Split(0, 2), Split(0))),
]
meshes = pytest.mark.parametrize(("mesh", "splits"), MESHES, ids=str)
SHAPES = [(10, 4), (8, 12, 4), (1, 6), (4, 12), (12, 4)]


@meshes
def test_fragments_that_one_process_sends_are_those_that_another_expects(mesh, splits):
    plan = small(mesh, splits, SHAPES, bucket_bytes=200)
    schedules = [ProcessSchedule(plan, rank) for rank in range(plan.size)]
    assert len(plan.buckets) > 1
    sent = [0.0] * plan.size
    for mine, theirs in product(schedules, schedules):
        for here, there in zip(mine.buckets, theirs.buckets, strict=True):
            for kind in ("gather", "scatter"):
                sent[mine.rank] += exchanged(here, there, kind, mine.rank, theirs.rank)
    for schedule in schedules:
        for bucket in schedule.buckets:
            for axes, broadcasts in bucket.rounds:
                copies = len(plan.topology.copies(axes, schedule.rank))
                amount = sum(f.nbytes for b in broadcasts for f in b.fragments)
                sent[schedule.rank] += amount * (copies - 1) / copies
    assert [t.sent for t in traffic(plan)] == pytest.approx(sent)


def exchanged(here, there, kind, source, destination):
    """Bytes that one process sends another one in a bucket; both know the same fragments."""
    amount = 0
    for axes, exchange in getattr(here, kind).items():
        pieces = exchange.outgoing.get(destination, [])
        others = getattr(there, kind).get(axes)
        assert pieces == (others.incoming.get(source, []) if others else [])
        amount += sum(f.nbytes for f in pieces)
    return amount


@meshes
def test_every_matrix_is_computed_once(mesh, splits):
    plan = small(mesh, splits, SHAPES, bucket_bytes=200)
    buckets = [
        bucket for rank in range(plan.size) for bucket in ProcessSchedule(plan, rank).buckets
    ]
    assert sorted(n for bucket in buckets for n in bucket.matrices) == list(
        range(len(plan.matrices))
    )
    assert len(plan.matrices) == 4 + 8


def test_experts_held_in_full_are_not_gathered_and_nothing_is_sent():
    plan = small((4,), (Split(0),), [(8, 12, 4), (8, 4, 12)])
    assert not any(plan.gathered)
    assert {t.sent for t in traffic(plan)} == {0}


def test_fingerprints_of_plans_differ_where_shapes_layouts_order_or_options_do():
    plans = [
        small((4,), (Split(0),), SHAPES),
        small((4,), (Split(1),), SHAPES[:1]),
        small((4,), (Split(0),), SHAPES[::-1]),
        small((4,), (Split(0),), SHAPES, spread=2.0),
        small((2,), (Split(0),), SHAPES),
    ]
    assert len({plan.fingerprint for plan in plans}) == len(plans)
    assert small((4,), (Split(0),), SHAPES).fingerprint == plans[0].fingerprint


def test_flops_of_products_and_decompositions_are_counted():
    steps, m, n = 5, 64, 32
    assert flops(
        polarlight.rules.muon(
            polar=polarlight.linalg.NewtonSchulz(polarlight.linalg.schedules.JORDAN)
        ),
        m,
        n,
    ) == steps * (2 * m * n * n * 2 + 2 * n**3)
    assert flops(polarlight.rules.row_norm(), m, n) == 0
    exact = polarlight.rules.muon(polar=polarlight.linalg.ExactPolar())
    assert flops(exact, m, n) == 8 * m * n * n + 20 * n**3


def test_the_forecast_is_what_the_executor_would_plan():
    """On a fake process group of 64, with parameters that `fully_shard` made."""
    dist.init_process_group("fake", rank=5, world_size=64, store=FakeStore())
    try:
        with torch.device("meta"):
            model = nn.Sequential(*(nn.Linear(48, 100, bias=False) for _ in range(3)))
        fully_shard(model, mesh=init_device_mesh("cpu", (64,)))
        optimizer = polarlight.Muon(model.parameters(), lr=0.1)
        (plan,) = forecast(optimizer.param_groups)
        local = model[0].weight.to_local().shape
        layout = plan.params[0].layouts[MATRIX]
        assert layout == Layout((100, 48), (64,), (Split(0),))
        assert tuple(local) == layout.local_shape((5,))
        text = str(polarlight.explain(optimizer))
        assert "3 matrices shared by a mesh of 64 processes" in text
        assert "sharing" in polarlight.explain(optimizer).to_json()
        assert "messages with at most 63 others" in " ".join(text.split())
    finally:
        dist.destroy_process_group()


@meshes
def test_the_summary_counts_the_messages_and_memory_of_the_busiest(mesh, splits):
    plan = small(mesh, splits, SHAPES, bucket_bytes=200)
    found, moved = summary(plan), traffic(plan)
    schedules = [ProcessSchedule(plan, rank) for rank in range(plan.size)]
    assert found.peers == max(len(t.peers) for t in moved)
    assert found.at_once == max(t.at_once for t in moved)
    assert found.messages <= max(map(message_count, schedules))
    assert 0.75 * max(map(peak_bytes, schedules)) <= found.peak_memory
    assert found.peak_memory <= max(map(peak_bytes, schedules))
    said = str(found)
    assert f"in {found.messages} messages with at most {found.peers} others" in said
    assert "of memory at their peak" in said


def test_explain_forecasts_with_the_options_of_the_executor():
    dist.init_process_group("fake", rank=0, world_size=64, store=FakeStore())
    try:
        with torch.device("meta"):
            model = nn.Sequential(*(nn.Linear(48, 128, bias=False) for _ in range(80)))
        fully_shard(model, mesh=init_device_mesh("cpu", (64,)))
        executor = polarlight.Sharded(options=Options(peers=8, bucket_bytes=128 * 48 * 4))
        optimizer = polarlight.Muon(model.parameters(), lr=0.1, executor=executor)
        (shared,) = polarlight.explain(optimizer).sharing
        assert shared.peers == 14  # eight of the first hop, eight of the second
        assert shared.buckets > 1
    finally:
        dist.destroy_process_group()


def test_plans_that_other_meshes_load_otherwise_differ_in_a_text_for_the_message():
    plan = small((4,), (Split(0),), SHAPES)
    others = [replace(plan, base_loads=[1e9, 0.0, 0.0, 0.0]), replace(plan, later_load=1e9)]
    others.append(replace(plan, ranks=(4, 5, 6, 7)))
    every = [plan, *others]
    assert (
        len({other.fingerprint for other in every})
        == len({o.fingerprint_texts for o in every})
        == 4
    )
