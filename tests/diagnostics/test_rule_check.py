"""The rule check names what did not run or ran wrong, and lets every rule of the family pass."""

import pytest
import torch
from torch import nn

import polarlight
from polarlight.diagnostics.rule_check import RuleCheck
from polarlight.linalg.properties import LIMITS, Invariant
from polarlight.optimizer.probe import Observation
from polarlight.properties.invariants import invariants
from polarlight.properties.measures import measure
from tests.contracts.catalogue import RULES
from tests.matrices import gaussian


class Untouched:
    """An executor that computes nothing."""

    def directions(self, jobs):
        return [job.matrix for job in jobs]


class OnShards:
    """Polar factors of half matrices: what a shard gives when it is taken for the matrix."""

    def directions(self, jobs):
        halves = [job.matrix.chunk(2, dim=-2) for job in jobs]
        return [
            torch.cat([job.rule.direction(half, job.buffers) for half in parts], dim=-2)
            for job, parts in zip(jobs, halves, strict=True)
        ]


def checked(rule, *, shape=(32, 8), executor=None, steps=3, every=1):
    p = nn.Parameter(torch.zeros(shape))
    optimizer = polarlight.SpectralOptimizer(
        [("up", p)], rule=rule, view=polarlight.view.Whole(), executor=executor
    )
    check = RuleCheck(every)
    optimizer.observe(check)
    sizes = torch.logspace(-1, 1, shape[-2])[:, None]
    base = gaussian(*shape, seed=0).float()
    for t in range(steps):
        p.grad = sizes * (base + 0.1 * gaussian(*shape, seed=t + 1).float())
        optimizer.step()
    return check


SHAPES = [(32, 8), (8, 32), (16, 16), (2, 24, 8)]


@pytest.mark.in_turn(2, "name", "shape")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", RULES)
def test_every_rule_keeps_what_it_promises(name, shape):
    check = checked(RULES[name], shape=shape)
    assert check.broken() == []
    (verdict,) = check.verdicts()
    assert verdict.rules == {RULES[name].name: 3}
    assert verdict.verdict == "kept"


@pytest.mark.parametrize(
    "rule",
    [
        polarlight.rules.muon(),
        polarlight.rules.aurora(),
        polarlight.rules.row_norm(),
        polarlight.stages.centred(polarlight.rules.row_norm()),
        polarlight.rules.polargrad(),
        polarlight.rules.row_then_polar(),
    ],
    ids=lambda rule: rule.name,
)
def test_a_rule_that_did_not_run_is_caught(rule):
    (verdict,) = checked(rule, executor=Untouched()).broken()
    assert verdict.name == "up"
    assert "BROKEN" in verdict.verdict


@pytest.mark.parametrize("shape", [(32, 8), (3, 3), (64, 64)], ids=str)
def test_jordans_spread_of_singular_values_breaks_no_promise(shape):
    """Five steps leave 0.68 to 1.2; one matrix in ten crossed the plain limit."""
    limit = invariants(
        polarlight.rules.muon(
            polar=polarlight.linalg.NewtonSchulz(polarlight.linalg.schedules.JORDAN)
        ),
        *shape,
    )[Invariant.ISOMETRY]
    for seed in range(50):
        M = gaussian(*shape, seed=seed) * torch.logspace(0, -seed / 20, shape[1])
        assert (
            measure(
                Invariant.ISOMETRY,
                M,
                polarlight.linalg.NewtonSchulz(polarlight.linalg.schedules.JORDAN)(M),
            )
            < limit
        )
    exact = invariants(polarlight.rules.muon(polar=polarlight.linalg.ExactPolar()), *shape)
    assert exact[Invariant.ISOMETRY] == LIMITS[Invariant.ISOMETRY] < limit


def test_a_spread_that_jordan_cannot_leave_is_caught():
    U, S, Vh = torch.linalg.svd(gaussian(64, 32, seed=0), full_matrices=False)
    S[1:] = 0.2 * S[0]
    raw = U @ torch.diag(S) @ Vh
    limit = invariants(
        polarlight.rules.muon(
            polar=polarlight.linalg.NewtonSchulz(polarlight.linalg.schedules.JORDAN)
        ),
        64,
        32,
    )[Invariant.ISOMETRY]
    assert measure(Invariant.ISOMETRY, raw, raw) > limit


def test_a_polar_factor_of_shards_is_caught():
    (verdict,) = checked(polarlight.rules.muon(), executor=OnShards()).broken()
    assert Invariant.SPECTRAL in verdict.broken


def test_promises_by_rule_and_shape():
    always = {Invariant.FINITE, Invariant.MOVES}
    again, isometry = Invariant.REPEATS, {Invariant.ISOMETRY, Invariant.SIZE}
    spectral, rows, columns = Invariant.SPECTRAL, Invariant.EQUAL_ROWS, Invariant.EQUAL_COLUMNS
    tall, wide = (8, 4), (4, 8)
    for rule, shape, kept in [
        (polarlight.rules.muon(), tall, {*isometry, spectral, again}),
        (polarlight.rules.aurora(), tall, {*isometry, rows, Invariant.ROWS_SCALED}),
        (polarlight.rules.aurora(), wide, {*isometry, spectral, again}),
        (
            polarlight.rules.aurora(side=polarlight.stages.Side.WIDE),
            wide,
            {*isometry, columns, Invariant.COLUMNS_SCALED},
        ),
        (polarlight.rules.row_then_polar(), tall, {*isometry, spectral, again}),
        (polarlight.rules.muoneq(polarlight.rules.rows_after(2)), tall, isometry),
        (polarlight.rules.polar_then_row(), tall, {rows, again}),
        (polarlight.rules.polargrad(), tall, {Invariant.ISOMETRY, spectral, again}),
        (polarlight.rules.normuon(), tall, {again}),
        (polarlight.rules.unormuon(), tall, {again}),
        (polarlight.rules.unormuon(beta2=0.0), tall, {rows, again}),
        (polarlight.rules.kaon(), tall, {spectral}),
        (polarlight.rules.AdamWRule(), tall, set()),
        (
            polarlight.stages.oriented(polarlight.rules.row_norm(), polarlight.stages.Columns()),
            tall,
            {columns, again},
        ),
    ]:
        assert set(invariants(rule, *shape)) == always | kept, rule.name


def test_soap_may_skip_its_first_step():
    assert set(invariants(polarlight.rules.soap(), 8, 4)) == {Invariant.FINITE}


def test_measures_separate_exact_updates_from_wrong_ones():
    M = gaussian(24, 6, seed=1) * torch.logspace(-1, 1, 6)
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    polar, rows = U @ Vh, M / M.norm(dim=1, keepdim=True)
    assert measure(Invariant.ISOMETRY, M, 3 * polar) < 1e-12
    assert measure(Invariant.ISOMETRY, M, M) > 0.3
    assert measure(Invariant.SPECTRAL, M, U @ torch.diag(S.cos() + 2) @ Vh) < 1e-12
    assert measure(Invariant.SPECTRAL, M, M.sign()) > 0.15
    assert measure(Invariant.EQUAL_ROWS, M, rows) < 1e-6
    assert measure(Invariant.EQUAL_COLUMNS, M, rows) > 0.35
    assert measure(Invariant.CENTRED, M, M - M.mean(dim=0)) < 1e-12
    assert measure(Invariant.CENTRED, M, M + 1) > 0.05
    assert measure(Invariant.MOVES, M, 0 * M) == 1
    assert measure(Invariant.MOVES, 0 * M, 0 * M) == 0
    assert measure(Invariant.FINITE, M, M / 0) == 1


def test_parameters_that_never_learn_are_named_and_frozen_ones_are_not():
    linear, lost, still = (nn.Parameter(torch.randn(8, 4)) for _ in range(3))
    still.requires_grad_(False)
    pairs = [("linear", linear), ("lost", lost), ("still", still)]
    optimizer = polarlight.SpectralOptimizer(pairs, rule=polarlight.rules.muon())
    check = RuleCheck()
    optimizer.observe(check)
    for _ in range(2):
        linear.grad = torch.randn(8, 4)
        optimizer.step()
    assert check.missing() == ["lost"]
    by_name = {verdict.name: verdict for verdict in check.verdicts()}
    assert by_name["linear"].rules == {"muon": 2}
    assert by_name["lost"].verdict == "NEVER UPDATED"
    assert by_name["still"].verdict == "frozen"
    assert check.report().splitlines()[0].startswith("lost")


def test_unsampled_steps_are_counted_and_vectors_are_checked():
    p = nn.Parameter(torch.zeros(5))
    optimizer = polarlight.SpectralOptimizer(
        [("bias", p)], rule=polarlight.rules.AdamWRule(), nonfinite=polarlight.NonFinite.PROPAGATE
    )
    check = RuleCheck(every=4)
    assert "no step seen" in check.report()
    optimizer.observe(check)
    for t in range(6):
        p.grad = torch.full((5,), float("nan")) if t == 4 else torch.ones(5)
        optimizer.step()
    (verdict,) = check.broken()
    assert verdict.rules == {"adamw": 6}
    assert list(verdict.broken) == [Invariant.FINITE]


def test_a_step_waits_for_nothing():
    """On the meta device any value that is asked for raises."""
    p = nn.Parameter(torch.zeros(16, 4, device="meta"))
    check = RuleCheck(every=1)
    group = {"rule": polarlight.rules.aurora(), "view": None}
    D = torch.zeros(16, 4, device="meta")
    for _ in range(2):
        assert check.begin()
        check.observe(Observation("up", p, D, D, group))
    with pytest.raises((RuntimeError, NotImplementedError)):
        check.verdicts()


def test_every_is_positive():
    with pytest.raises(ValueError, match="every must be >= 1, got 0"):
        RuleCheck(every=0)
