"""The least possible load beside which `benchmarks.plans_at_scale` prints that of its plans."""

import pytest

from benchmarks.plans_at_scale import (
    MODELS,
    attention,
    experts,
    least_busiest,
    mlp,
    moving_over_computing,
    plans_of,
)
from polarlight.execution.sharded.options import Options


def mixed():
    """One layer with dense matrices and 16 experts."""
    yield from attention("model.layers.0", 64, 64, 32)
    yield from mlp("model.layers.0.mlp.shared_experts", 64, 128)
    yield from experts("model.layers.0", 16, 64, 32)


@pytest.mark.parametrize("layout", ["4", "16", "64", "copies 4 x 4", "experts 4 x 4"])
@pytest.mark.parametrize("price", [0.0, 10.0, 4000.0])
def test_no_plan_falls_below_the_bound(layout, price):
    plans = plans_of(mixed(), layout, Options(flops_per_byte=price))
    bound, busiest = least_busiest(plans), max(plans[-1].loads)
    assert sum(cost for plan in plans for cost in plan.costs) / plans[-1].size <= bound * (1 + 1e-9)
    assert bound <= busiest * (1 + 1e-9)


def test_where_matrices_are_fewer_than_processes_the_plan_is_at_the_bound():
    layer = [(n, s) for n, s in MODELS["llama-3-8b"]() if n.startswith("model.layers.0.")]
    (plan,) = plans_of(iter(layer), "1024")
    assert least_busiest([plan]) == pytest.approx(max(plan.loads), rel=1e-9)


def test_a_holder_keeps_what_the_bound_allows_and_the_rest_moves_at_its_price():
    """One of two processes holds four equal matrices and keeps x; the other computes the rest."""
    shapes = [(f"model.layers.{i}.mlp.experts.down_proj", (1, 32, 32)) for i in range(4)]
    (plan,) = plans_of(iter(shapes), "2")
    flops, moved = plan.costs[0], plan.transfer_costs[0]
    kept = 4 * (flops + moved) / (2 * flops + moved)  # x flops = (4 - x) (flops + moved)
    assert least_busiest([plan]) == pytest.approx(kept * flops)
    assert moving_over_computing([plan]) == pytest.approx(moved / flops)
