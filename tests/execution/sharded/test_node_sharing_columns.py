"""Columns of wide matrices: directions of some columns are columns of the whole direction."""

from threading import Thread

import pytest
import torch

import polarlight as pl
from polarlight.execution.cost import _CountedRows, columnwise_cost, rowwise_cost
from polarlight.linalg.rest import SIZES
from polarlight.linalg.row_sums import NeedsAllRowsError
from tests.contracts.catalogue import SHIPPED
from tests.execution.sharded.test_rowwise import EIGEN, RULES, Together, alone, gradients


def suitable(shape):
    """Shipped rules whose columns can be computed apart at this shape."""
    m, n = shape
    return [name for name, rule in SHIPPED.items() if columnwise_cost(rule, m, n, n // 2)]


def test_rules_that_can_be_computed_by_columns():
    """Rules that treat rows alone need whole rows, tall and square matrices all columns."""
    found = suitable((3, 40))
    assert {"muon", "aurora", "normuon", "normuon_paper"} <= set(found)
    assert [name for name in found if name in RULES] == [name for name in WIDE if name in SHIPPED]
    assert suitable((40, 3)) == suitable((4, 4)) == []
    for rule in (pl.rules.soap(), pl.rules.row_norm(), SHIPPED["unormuon"]):
        assert not columnwise_cost(rule, 3, 40, 20) or rule.name in found


def spread(rule, M, sizes, steps):
    """Directions of some steps from parts of the columns, and the buffers of each part."""
    together, n = Together(len(sizes), M[0].shape[-1]), M[0].shape[-1]
    found = [None] * len(sizes)

    def run(place, first, size):
        buffers = {
            name: torch.zeros(*shape[:-1], size if shape[-1] == n else shape[-1], dtype=M[0].dtype)
            for name, shape in rule.buffer_shapes(M[0].shape).items()
        }
        for step in range(steps):
            part = M[step][..., first : first + size].clone()
            D = rule.direction_on_columns(part, together.seen_by(place), buffers)
            found[place] = D, buffers

    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    threads = [Thread(target=run, args=(i, starts[i], size)) for i, size in enumerate(sizes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    directions, buffers = zip(*found, strict=True)
    return torch.cat(directions, -1), buffers


def needs_all_columns(rule, m, n):
    """Tell if half of the columns are too few, without a count of flops."""
    buffers = {
        name: torch.zeros(p, n // 2 if q == n and name != SIZES else q)
        for name, (p, q) in rule.buffer_shapes(torch.Size((m, n))).items()
    }
    half = gradients((m, n // 2), torch.float32, steps=1)[0]
    try:
        rule.direction_on_columns(half, _CountedRows(n), buffers)
    except NeedsAllRowsError:
        return True
    return False


WIDE = [name for name, rule in RULES.items() if not needs_all_columns(rule, 3, 40)]


@pytest.mark.parametrize("name", [*WIDE, "aurora, wide side"])
def test_directions_of_some_columns_are_columns_of_the_whole_direction(name):
    """Three steps of a batch of two, with row moments that every part keeps in full."""
    wide = pl.rules.aurora(pl.rules.WarmPolar(EIGEN), side=pl.stages.Side.LONG_AXIS)
    rule = wide if name == "aurora, wide side" else RULES[name]
    M = gradients((2, 3, 40), torch.float64)
    expected, kept = alone(rule, M, 3)
    for sizes in [(14, 14, 12), (1, 39), (40,)]:
        found, buffers = spread(rule, M, sizes, 3)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
        for buffer, values in kept.items():
            parts = [own[buffer] for own in buffers]
            if values.shape[-1] == 40:
                torch.testing.assert_close(torch.cat(parts, -1), values, rtol=1e-10, atol=1e-11)
                continue
            for part in parts:  # everybody's
                torch.testing.assert_close(part, values, rtol=1e-10, atol=1e-11)


def test_most_rules_by_rows_of_tall_matrices_are_rules_by_columns_of_wide_ones():
    assert len(WIDE) >= 10


def test_columns_cost_what_rows_of_the_transpose_do():
    rows, columns = (
        rowwise_cost(pl.rules.muon(), 14336, 4096, 1792),
        columnwise_cost(pl.rules.muon(), 4096, 14336, 1792),
    )
    assert (rows.flops, rows.cost) == (columns.flops, columns.cost)
    assert columns.summed == pytest.approx(rows.summed, rel=1e-3)


def test_rules_that_need_whole_rows_raise_on_some_columns():
    X = torch.randn(3, 5)
    columns = Together(2, 10).seen_by(0)
    for rule in (
        pl.rules.row_norm(),
        pl.rules.soap(),
        pl.rules.muon(polar=pl.linalg.ExactPolar()),
        pl.rules.aurora(pl.rules.BalancedPolar(EIGEN), side=pl.stages.Side.LONG_AXIS),
    ):
        tall = rule.name == "aurora"
        with pytest.raises(NeedsAllRowsError):
            rule.direction_on_columns(X.repeat(5, 1) if tall else X, columns, {})
