"""Every rule, every layout: the parameters of one device, to rounding.

One start of the processes serves many cases; a failure names the rule, the layout and the table of
parameters. The full cross product is slow.
"""

import pytest
import torch

import polarlight
from polarlight.diagnostics.sharding import check_sharding, table
from tests.contracts.catalogue import RULES, _exact, _plain
from tests.distributed.layouts import LAYOUTS, models
from tests.distributed.processes import run

SHARP = {name: _exact(make) for name, make in _plain()}
FEW = ["aurora", "normuon", "soap", "row_norm"]


def optimizer(rule, **options):
    def make(model):
        groups = [{"params": list(model.named_parameters())}]
        return polarlight.SpectralOptimizer(
            groups, lr=0.1, weight_decay=0.1, rule=rule, view=polarlight.Whole(), **options
        )

    return make


def compare(rank, names, world, dtype):
    """Raises AssertionError, with what differs, on the first process that sees it."""
    wrong = []
    for name in names:
        for layout, placed in LAYOUTS[world].items():
            found = check_sharding(*models(dtype, placed), optimizer(RULES[name]))
            if not all(d.same for d in found):
                wrong.append(f"{name}, {layout}:\n{table(found)}")
    assert not wrong, "\n".join(wrong)


def test_shipped_rules_on_two_processes():
    run(2, compare, list(SHARP), 2, torch.float64)


def some(rank):
    compare(rank, FEW, 4, torch.float64)
    compare(rank, FEW[:2], 4, torch.float32)


def test_some_rules_on_four_processes():
    run(4, some)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("third", range(3))
def test_every_rule_and_layout(world, dtype, third):
    run(world, compare, list(RULES)[third::3], world, dtype)
