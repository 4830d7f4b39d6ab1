"""Row-wise parameters: which ones are chosen, and that shards of rows give the whole result."""

from threading import Barrier, Thread

import pytest
import torch

import polarlight as pl
from polarlight.execution.cost import _CountedRows, rowwise_cost
from polarlight.execution.sharded.forecast import forecast, summary
from polarlight.execution.sharded.layouts import Layout, Split
from polarlight.execution.sharded.options import Options
from polarlight.linalg.rest import SIZES as MOMENTUM_SIZES
from polarlight.linalg.row_sums import NeedsAllRowsError, Rows
from polarlight.rules import BalancedPolar, FeedbackPolar
from tests.contracts.catalogue import SHIPPED

EIGEN = pl.linalg.EigenPolar()


class Together(Rows):
    """Rows that lie on threads: what one asks for, all do."""

    def __init__(self, parts, total):
        self.parts, self.total = [None] * parts, total
        self.barrier = Barrier(parts, timeout=30)

    def seen_by(self, place):
        return Part(self, place)


class Part(Rows):
    """One thread's view of them."""

    def __init__(self, together, place):
        self.together, self.place = together, place

    def count(self, X):
        return self.together.total

    def sum(self, x):
        return self._all(x).sum(0)

    def max(self, x):
        return self._all(x).amax(0)

    def _all(self, x):
        self.together.parts[self.place] = x.clone()
        self.together.barrier.wait()
        found = torch.stack(self.together.parts)
        self.together.barrier.wait()
        return found


def spread(rule, M, sizes, steps):
    """Directions of some steps from parts of the rows, and the buffers, put together."""
    together = Together(len(sizes), M[0].shape[-2])
    found = [None] * len(sizes)

    def run(place, first, size):
        rows = together.seen_by(place)
        buffers = {
            name: torch.zeros(
                *shape[:-2],
                shape[-2] if name == MOMENTUM_SIZES else size,
                shape[-1],
                dtype=M[0].dtype,
            )
            for name, shape in rule.buffer_shapes(M[0].shape).items()
        }
        for step in range(steps):
            part = M[step][..., first : first + size, :].clone()
            found[place] = rule.direction_on_rows(part, rows, buffers), buffers

    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    threads = [Thread(target=run, args=(i, starts[i], size)) for i, size in enumerate(sizes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    directions, buffers = zip(*found, strict=True)
    sizes = [b.pop(MOMENTUM_SIZES) for b in buffers if MOMENTUM_SIZES in b]
    for found in sizes:  # everybody's
        torch.testing.assert_close(found, sizes[0], rtol=0, atol=0, equal_nan=True)
    joined = {name: torch.cat([b[name] for b in buffers], -2) for name in buffers[0]}
    if sizes:
        joined[MOMENTUM_SIZES] = sizes[0]
    return torch.cat(directions, -2), joined


def alone(rule, M, steps):
    buffers = {
        name: torch.zeros(shape, dtype=M[0].dtype)
        for name, shape in rule.buffer_shapes(M[0].shape).items()
    }
    for step in range(steps):
        direction = rule.direction(M[step], buffers)
    return direction, buffers


def gradients(shape, dtype, steps=3):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(*shape[:-1], 1, generator=generator, dtype=torch.float64)
    found = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(steps)]
    return [(sizes * M).to(dtype) for M in found]


def suitable(shape):
    """Shipped rules whose rows can stay at this shape."""
    m, n = shape[-2:]
    return [name for name, rule in SHIPPED.items() if rowwise_cost(rule, m, n, m // 2)]


def needs_all_rows(rule, m, n):
    """Tell if half of the rows are too few: what `suitable` says, without a count of flops."""
    buffers = {
        name: torch.zeros(m // 2 if p == m else p, q)
        for name, (p, q) in rule.buffer_shapes(torch.Size((m, n))).items()
    }
    half = gradients((m // 2, n), torch.float32, steps=1)[0]
    try:
        rule.direction_on_rows(half, _CountedRows(m), buffers)
    except NeedsAllRowsError:
        return True
    return False


RULES = {name: rule for name, rule in SHIPPED.items() if not needs_all_rows(rule, 40, 3)} | {
    "aurora, balanced": pl.rules.aurora(BalancedPolar(EIGEN)),
    "aurora, feedback": pl.rules.aurora(FeedbackPolar(EIGEN, rounds=3)),
    "aurora, exact": pl.rules.aurora(pl.rules.WarmPolar(EIGEN)),
    "muon, centred": pl.stages.centred(pl.rules.muon(polar=EIGEN)),
    "normuon, exact": pl.rules.normuon(polar=EIGEN),
    "muon, AOL": pl.rules.muon(
        polar=pl.linalg.NewtonSchulz(pl.linalg.schedules.TURBO_MUON, normalisation=pl.linalg.AOL())
    ),
    "muon, Schatten-4": pl.rules.muon(
        polar=pl.linalg.NewtonSchulz(normalisation=pl.linalg.Schatten4())
    ),
    "muon, Gram": pl.rules.muon(polar=pl.linalg.GramNewtonSchulz()),
    "muon, regularised": pl.rules.muon(polar=pl.linalg.RegularisedPolar()),
}
SIZES = [(14, 14, 12), (20, 20, 0), (1, 0, 39), (40,)]


def test_rules_that_can_be_computed_row_wise():
    assert suitable((40, 3)) == [name for name in RULES if name in SHIPPED]
    assert len(suitable((40, 3))) >= 10
    assert suitable((3, 40)) == suitable((4, 4)) == ["row_norm"]


@pytest.mark.parametrize("name", RULES)
def test_directions_of_some_rows_are_rows_of_the_whole_direction(name):
    """Three steps, with buffers that lie with the rows: uneven and empty parts."""
    M = gradients((40, 3), torch.float64)
    expected, kept = alone(RULES[name], M, 3)
    for sizes in SIZES:
        found, buffers = spread(RULES[name], M, sizes, 3)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
        for buffer, values in kept.items():
            torch.testing.assert_close(buffers[buffer], values, rtol=1e-10, atol=1e-11)


def test_wide_gram_matrices_are_summed_by_panels():
    """Sides beyond a panel, in batches: only one half of each of two Gram matrices is sent."""
    for rule in (pl.rules.muon(), pl.rules.aurora(pl.rules.WarmPolar(EIGEN))):
        M = gradients((2, 500, 300), torch.float64, 1)
        expected, _ = alone(rule, M, 1)
        found, _ = spread(rule, M, (200, 300), 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    half = rowwise_cost(pl.rules.muon(polar=EIGEN), 10**6, 4096, 10**4).summed / (8 * 4096**2)
    assert 0.5 < half < 0.55


def test_zeros_and_non_finite_values_agree_on_every_part():
    for polar in (EIGEN, pl.linalg.RegularisedPolar(), pl.linalg.AutoPolar()):
        rule = pl.rules.muon(polar=polar)
        (M,) = gradients((40, 3), torch.float64, 1)
        M[7] = 0
        M[:, 1] = 0
        found, _ = spread(rule, [M], (14, 14, 12), 1)
        assert (found[7] == 0).all()
        assert (found[:, 1] == 0).all()
        assert (spread(rule, [M * 0], (14, 14, 12), 1)[0] == 0).all()
        for bad in (float("nan"), float("inf")):
            M[30, 0] = bad
            assert spread(rule, [M], (14, 14, 12), 1)[0].isnan().any(0)[0]
    assert spread(pl.rules.muon(polar=EIGEN), [M], (14, 26), 1)[0].isnan().all()


def test_rules_that_need_all_rows_raise_on_some_of_them():
    X = torch.randn(5, 3)
    rows = Together(2, 10).seen_by(0)
    for rule in (
        pl.rules.muon(polar=pl.linalg.ExactPolar()),
        pl.rules.soap(),
        pl.rules.aurora(side=pl.stages.Side.WIDE),
    ):
        wide = rule.name == "aurora"
        with pytest.raises(NeedsAllRowsError):
            rule.direction_on_rows(X.repeat(1, 5) if wide else X, rows, {})


def embedding(shape, mesh, splits, rule=None, dtype=torch.bfloat16, others=(), **options):
    """The plan of one matrix under a rule, beside hidden ones under Muon."""
    rule = rule or pl.rules.muon()
    named = {"head": shape, **{f"hidden{i}": other for i, other in enumerate(others)}}
    group = {
        "params": [torch.empty(s, device="meta", dtype=dtype) for s in named.values()],
        "param_names": list(named),
        "rule": rule,
        "view": pl.view.Whole(),
    }
    (plan,) = forecast(
        [group], lambda n, p: Layout(tuple(p.shape), mesh, splits), Options(**options)
    )
    return plan


HEAD = (128256, 4096)
ROWS = ((8,), (Split(0),))


def test_a_head_is_computed_row_wise_where_sums_are_fewer_bytes_than_rows():
    for mesh, splits in (ROWS, ((2, 8), (None, Split(0))), ((2, 4), (Split(0, 4), Split(0)))):
        for rule in (pl.rules.muon(), pl.rules.aurora(), pl.rules.normuon()):
            plan = embedding(HEAD, mesh, splits, rule)
            never = embedding(HEAD, mesh, splits, rule, row_bytes=2**40)
            assert list(plan.rowwise) == [0]
            assert not never.rowwise
            ours, theirs = summary(plan), summary(never)
            assert ours.mean_bytes < theirs.mean_bytes
            assert ours.sent < theirs.sent / 4
            assert ours.flops < theirs.flops / 2
            assert ours.balance < 1.01 < theirs.balance
            assert ours.sent == ours.sums
            assert "1 parameter stays where the rows lie (head), for" in str(ours)


def test_matrices_that_are_not_tall_enough_or_not_row_wise_are_gathered():
    assert not embedding((14336, 4096), *ROWS, others=[(4096, 4096)] * 20).rowwise
    assert not embedding(HEAD[::-1], *ROWS).rowwise
    assert not embedding(HEAD, (8,), (Split(1),)).rowwise
    assert not embedding(HEAD, (8,), (None,)).rowwise
    assert not embedding(HEAD, *ROWS, pl.rules.soap()).rowwise
    assert not embedding((100, 4), *ROWS).rowwise  # too small to be worth messages of its own
    assert embedding((100, 4), *ROWS, row_bytes=0, sum_weight=0).rowwise


def test_one_large_matrix_does_not_make_its_owner_the_busiest():
    """On many processes its sums are more bytes altogether, and still fewer for the busiest one."""
    mesh, splits = (64,), (Split(0),)
    hidden = [(4096, 4096)] * 128
    plan = embedding(HEAD, mesh, splits, others=hidden)
    never = embedding(HEAD, mesh, splits, others=hidden, row_bytes=2**40)
    assert list(plan.rowwise) == [0]
    assert summary(plan).mean_bytes > summary(never).mean_bytes
    assert summary(plan).sent < summary(never).sent
    # Of many equal ones each has an owner, and sums that everybody pays for are no gain.
    many = embedding((14336, 4096), (4096,), splits, others=[(14336, 4096)] * 63)
    assert not many.rowwise


def test_owners_are_balanced_with_row_wise_loads():
    """Processes without rows get more matrices."""
    options = {"row_bytes": 0, "sum_weight": 0.0}
    plan = embedding((3, 1), (4,), (Split(0),), pl.rules.row_norm(), others=[(1, 1)] * 6, **options)
    assert list(plan.rowwise) == list(range(7))
    plan = embedding(HEAD, *ROWS, others=[(4096, 4096)] * 40)
    assert summary(plan).balance <= 1.1
    for options in ({"sum_weight": -1.0}, {"sum_weight": float("inf")}):
        with pytest.raises(ValueError, match="sum_weight must be >= 0 and finite, got"):
            Options(**options)
