"""Every rule, every layout: the parameters of one device, to rounding.

One start of the processes serves many cases; a failure names the rule, the layout and the table of
parameters. The full cross product is slow.
"""

from itertools import product

import pytest
import torch

import polarlight
from polarlight.diagnostics.sharding import check_sharding, table
from polarlight.execution.sharded.plan import Options
from tests.contracts.catalogue import RULES, _exact, _plain
from tests.distributed.layouts import LAYOUTS, SHAPES, models
from tests.distributed.processes import run

SHARP = {name: _exact(make) for name, make in _plain()}
FEW = ["aurora", "normuon", "soap", "row_norm"]


def optimizer(rule, **options):
    def make(model):
        groups = [{"params": list(model.named_parameters())}]
        return polarlight.SpectralOptimizer(
            groups, lr=0.1, weight_decay=0.1, rule=rule, view=polarlight.view.Whole(), **options
        )

    return make


def compare(rank, names, world, dtype, rules=RULES):
    """Raises AssertionError, with what differs, on the first process that sees it."""
    wrong = []
    for name in names:
        for layout, placed in LAYOUTS[world].items():
            shapes = [s for s in SHAPES if "pairs" not in name or s[-2] % 2 == 0]
            found = check_sharding(*models(dtype, placed, shapes), optimizer(rules[name]))
            if not all(d.same for d in found):
                wrong.append(f"{name}, {layout}:\n{table(found)}")
    assert not wrong, "\n".join(wrong)


def by_rows(rank, world):
    """Rules whose rows stay where they lie, whatever the size."""
    rows = polarlight.Sharded(options=Options(row_bytes=0, sum_weight=0))
    rules = polarlight.rules.row_norm(), polarlight.stages.centred(polarlight.rules.row_norm())
    for rule, layout in product(rules, ("rows", "HSDP", "copies", "columns")):
        if layout in LAYOUTS[world]:
            whole, sharded = models(torch.float64, LAYOUTS[world][layout])
            found = check_sharding(whole, sharded, optimizer(rule, executor=rows))
            assert all(d.same for d in found), f"{rule.name}, {layout}:\n{table(found)}"
            if layout in ("rows", "HSDP"):
                assert len(rows.plans()[-1].rowwise) == 6  # all but the stack


EIGEN = polarlight.linalg.EigenPolar()
GRAM = {
    "aurora": polarlight.rules.aurora(polarlight.rules.WarmPolar(EIGEN)),
    "normuon": polarlight.rules.normuon(polar=EIGEN),
    "centred": polarlight.stages.centred(polarlight.rules.muon()),
}
"""Rules that take the polar factor of a tall matrix through its Gram matrix."""
TALL = [(50, 3), (9, 2), (12, 4), (2, 30, 4), (4, 12)]
"""Nine rows on four processes leave one without any; the stack is cut in two, the last is wide."""


def by_gram(rank, world):
    """Tall matrices that stay where their rows lie, uneven and empty shards, wherever rows are cut.

    In `test_rowwise.py` every rule that can do so does, on threads.
    """
    stay = polarlight.Sharded(options=Options(row_bytes=0, sum_weight=0))
    cases = [(name, layout, torch.float64) for name, layout in product(GRAM, LAYOUTS[world])]
    for name, layout, dtype in [*cases, ("aurora", "rows", torch.float32)]:
        if layout in ("rows", "HSDP", "FSDP x TP, rows"):
            whole, sharded = models(dtype, LAYOUTS[world][layout], TALL)
            found = check_sharding(whole, sharded, optimizer(GRAM[name], executor=stay), steps=3)
            assert all(d.same for d in found), f"{name}, {layout}, {dtype}:\n{table(found)}"
            kept = list(stay.plans()[-1].rowwise)
            assert kept == [0, 1, 2], (name, layout, kept)


def test_shipped_rules_on_two_processes():
    run(2, shipped)


def shipped(rank):
    by_rows(rank, 2)
    by_gram(rank, 2)
    compare(rank, list(SHARP), 2, torch.float64)


def some(rank):
    by_rows(rank, 4)
    by_gram(rank, 4)
    compare(rank, FEW, 4, torch.float64)
    # In float32: engines that run in bfloat16 round a batch and its matrices apart.
    compare(rank, FEW[:2], 4, torch.float32, SHARP)


def test_some_rules_on_four_processes():
    run(4, some)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("part", range(6))
def test_every_rule_and_layout(world, dtype, part):
    # A chaotic map multiplies a rounding by its slope, about a thousand: 1.3e-5 in float32.
    sharp = [name for name in RULES if dtype == torch.float64 or "maximal-slope" not in name]
    run(world, compare, sharp[part::6], world, dtype)


READ_THE_GRADIENT = ["muon_squared", "soap_muon", "sink_soap"]


def reading(rank):
    compare(rank, READ_THE_GRADIENT, 2, torch.float64)


def test_rules_that_read_the_gradient_on_two_processes():
    run(2, reading)
