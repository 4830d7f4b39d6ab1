"""Buckets: no process sends, receives or passes on more than twice `bucket_bytes` in one."""

import pytest
import torch

import polarlight
from benchmarks.plans_at_scale import MODELS, plans_of
from polarlight.execution.sharded.forecast import forecast
from polarlight.execution.sharded.layouts import Layout, Split
from polarlight.execution.sharded.memory import message_count
from polarlight.execution.sharded.options import Options
from polarlight.execution.sharded.schedule import ALIGNMENT, ProcessSchedule
from polarlight.execution.sharded.traffic import traffic
from tests.execution.sharded.exchanges import largest_exchange_bytes

STACKS = [(1, 60, 40), (2, 40, 60)] * 20 + [(64, 60, 40)]
SQUARES = [(60, 40), (40, 60), (200, 12)] * 40
MATRIX_BYTES = 60 * 40 * 4

LAYOUTS = {
    "20 of 80 processes hold all": ((4, 20), (Split(0), Split(1)), STACKS),
    "one of 64 processes holds all": ((64,), (Split(0),), STACKS),
    "every process holds a part": ((60,), (Split(0),), SQUARES),
    "70 of 80 processes hold rows": ((80,), (Split(0),), [(70, 30)] * 60 + SQUARES),
    "copies of 16": ((5, 16), (None, Split(0)), SQUARES),
    "rows and columns": ((8, 10), (Split(0), Split(1)), SQUARES),
    "uneven heads": ((7, 9), (Split(0, 3), Split(0)), SQUARES),
}


@pytest.mark.parametrize("peers", [128, 12])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_process_exchanges_more_than_twice_the_bytes_of_a_bucket(layout, peers):
    mesh, splits, shapes = LAYOUTS[layout]
    limit = MATRIX_BYTES + 1000  # with the buffers
    plan = plan_of(mesh, splits, shapes, bucket_bytes=limit, peers=peers)
    assert max(kind.nbytes for kind in plan.kinds) <= limit
    moved = traffic(plan)
    assert len(plan.buckets) > 1
    assert max(t.at_once for t in moved) <= 2 * limit


def plan_of(mesh, splits, shapes, **options):
    """A plan of parameters of these shapes under NorMuon, in float32."""
    tensors = [torch.empty(shape, device="meta") for shape in shapes]
    lay = lambda name, p: Layout(tuple(p.shape), mesh, splits)  # noqa: E731
    group = {"params": tensors, "rule": polarlight.rules.normuon()}
    (plan,) = forecast([group], lay, Options(row_bytes=2**40, **options))
    return plan


@pytest.mark.parametrize("layout", ["20 of 80 processes hold all", "every process holds a part"])
@pytest.mark.parametrize("peers", [128, 12])
def test_the_most_bytes_at_once_are_those_of_the_schedules(layout, peers):
    mesh, splits, shapes = LAYOUTS[layout]
    plan = plan_of(mesh, splits, shapes[::6], bucket_bytes=4 * MATRIX_BYTES, peers=peers)
    for rank, moved in list(enumerate(traffic(plan)))[::7]:
        schedule = ProcessSchedule(plan, rank)
        padding = ALIGNMENT * (message_count(schedule) + plan.size)
        assert moved.at_once <= largest_exchange_bytes(schedule) <= moved.at_once + padding


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("qwen3-30b-a3b", "1024"),
        pytest.param("deepseek-v3", "1024", marks=pytest.mark.slow),
        pytest.param("deepseek-v3", "4096", marks=pytest.mark.slow),
        pytest.param("kimi-like", "experts 64 x 32", marks=pytest.mark.slow),
    ],
)
def test_buckets_and_partners_of_published_models_are_bounded_on_every_process(model, layout):
    """Of 1,024 processes 256 hold all of DeepSeek's experts; others in their groups pass on."""
    for plan in plans_of(MODELS[model](), layout):
        moved = traffic(plan)
        assert max(t.at_once for t in moved) <= 2 * plan.options.bucket_bytes
        assert max(len(t.peers) for t in moved) <= 128
