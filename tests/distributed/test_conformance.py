"""Every rule, every layout: the parameters of one device, to rounding.

One start of the processes serves many cases; a failure names the rule, the layout and the table of
parameters. The full cross product is slow; the ordinary run takes each rule in one layout, in turn,
and one rule in every layout.
"""

from itertools import cycle, product

import pytest
import torch

import polarlight
from polarlight.diagnostics.sharding import check_sharding, gradient, shard_like, table
from polarlight.execution.param_task import to_local
from polarlight.execution.sharded.options import Options
from tests.contracts.catalogue import RULES, _exact, _plain
from tests.distributed.layouts import LAYOUTS, SHAPES, models
from tests.distributed.processes import run

SHARP = {name: _exact(make) for name, make in _plain()}
FEW = ["aurora", "normuon", "soap", "row_norm"]
READ_THE_GRADIENT = ["muon_squared", "soap_muon", "sink_soap"]


def optimizer(rule, **options):
    def make(model):
        groups = [{"params": list(model.named_parameters())}]
        return polarlight.SpectralOptimizer(
            groups, lr=0.1, weight_decay=0.1, rule=rule, view=polarlight.view.Whole(), **options
        )

    return make


def compare(rank, cases, world, dtype, rules=RULES, steps=5):
    """Raises AssertionError, with what differs, on the first process that sees it."""
    wrong = []
    for name, layout in cases:
        shapes = [s for s in SHAPES if "pairs" not in name or s[-2] % 2 == 0]
        pair = models(dtype, LAYOUTS[world][layout], shapes)
        found = check_sharding(*pair, optimizer(rules[name]), steps=steps)
        if not all(d.same for d in found):
            wrong.append(f"{name}, {layout}:\n{table(found)}")
    assert not wrong, "\n".join(wrong)


def in_turn(names, world):
    """Each rule in one layout."""
    return list(zip(names, cycle(LAYOUTS[world]), strict=False))


def by_rows(rank, world):
    """Rules whose rows stay where they lie, whatever the size."""
    rows = polarlight.Sharded(options=Options(row_bytes=0, sum_weight=0))
    rules = polarlight.rules.row_norm(), polarlight.stages.centred(polarlight.rules.row_norm())
    for rule, layout in product(rules, ("rows", "HSDP", "copies", "columns")):
        if layout in LAYOUTS[world]:
            whole, sharded = models(torch.float64, LAYOUTS[world][layout])
            found = check_sharding(whole, sharded, optimizer(rule, executor=rows), steps=3)
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
    cut = [x for x in ("rows", "HSDP", "FSDP x TP, rows") if x in LAYOUTS[world]]
    cases = [("aurora", layout, torch.float64) for layout in cut]
    cases += [(name, "rows", torch.float64) for name in GRAM if name != "aurora"]
    for name, layout, dtype in [*cases, ("aurora", "rows", torch.float32)]:
        whole, sharded = models(dtype, LAYOUTS[world][layout], TALL)
        found = check_sharding(whole, sharded, optimizer(GRAM[name], executor=stay), steps=3)
        assert all(d.same for d in found), f"{name}, {layout}, {dtype}:\n{table(found)}"
        kept = list(stay.plans()[-1].rowwise)
        assert kept == [0, 1, 2], (name, layout, kept)


def as_they_come(rank, world, layouts=LAYOUTS):
    """Directions that are applied one by one, in many buckets: the same weights as at once."""
    small = Options(bucket_bytes=200)
    for layout, name in zip(layouts[world], cycle(["aurora", "soap", "normuon"]), strict=False):
        found = []
        for last in (True, False):
            executor = polarlight.Sharded(options=small, weights_last=last)
            _, model = models(torch.float64, layouts[world][layout])
            made = optimizer(SHARP[name], executor=executor)(model)
            for step in range(2):
                for i, p in enumerate(model.parameters()):
                    whole = torch.empty(p.shape, dtype=p.dtype)
                    p.grad = shard_like(gradient(whole, seed=10 * step + i), p)
                made.step()
            states = [x for p in model.parameters() for x in made.state[p].values()]
            found.append([to_local(x.detach()) for x in (*model.parameters(), *states)])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), (layout, name)


def test_shipped_rules_on_two_processes():
    run(2, shipped)


@pytest.mark.slow
def test_rowwise_rules_and_buckets_on_two_processes():
    """Layouts that four processes have too."""
    run(2, rowwise_and_buckets)


def rowwise_and_buckets(rank):
    by_rows(rank, 2)
    by_gram(rank, 2)
    as_they_come(rank, 2)


def shipped(rank):
    compare(rank, in_turn(SHARP, 2), 2, torch.float64, steps=3)
    compare(rank, product(READ_THE_GRADIENT, LAYOUTS[2]), 2, torch.float64, steps=3)


def some(rank):
    by_rows(rank, 4)
    by_gram(rank, 4)
    as_they_come(rank, 4)
    everywhere = product(FEW[:1], LAYOUTS[4])
    compare(rank, [*everywhere, *in_turn(FEW[1:], 4)], 4, torch.float64, steps=3)
    # In float32: engines that run in bfloat16 round a batch and its matrices apart.
    compare(rank, in_turn(FEW[:2], 4), 4, torch.float32, SHARP, steps=3)


def test_some_rules_on_four_processes():
    run(4, some)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("part", range(6))
def test_every_rule_and_layout(world, dtype, part):
    # A chaotic map multiplies a rounding by its slope, about a thousand: 1.3e-5 in float32.
    sharp = [name for name in RULES if dtype == torch.float64 or "maximal-slope" not in name]
    cases = [
        (name, layout)
        for name, layout in product(sharp[part::6], LAYOUTS[world])
        if not ("int8" in name and cuts_columns(world, layout))
    ]
    run(world, compare, cases, world, dtype)


def cuts_columns(world, layout):
    """An 8-bit momentum refuses shards that cut its blocks of entries of a row."""
    return any(placement.is_shard(1) for placement in LAYOUTS[world][layout][1])
