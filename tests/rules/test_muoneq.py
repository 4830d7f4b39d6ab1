"""MuonEq: the references of R, C, RC and the phase switch; invariances; tiny gradients."""

from functools import partial

import pytest
import torch

import polarlight
from polarlight.stages import EquilibrateBoth, EquilibrateColumns, EquilibrateRows
from tests.matrices import SHAPES, TALL, WIDE, gaussian, skewed
from tests.reference import muoneq
from tests.rules.trajectory import EXACT, FLOOR, NO_FLOOR, ROUNDING, distance

MODES = {"R": EquilibrateRows, "C": EquilibrateColumns, "RC": EquilibrateBoth}


@pytest.mark.parametrize(("floor", "tolerance"), [(NO_FLOOR, ROUNDING), (1e-4, FLOOR)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", MODES)
def test_steps_follow_the_reference(mode, shape, nesterov, floor, tolerance):
    rule = polarlight.rules.muoneq(MODES[mode](floor), nesterov=nesterov, polar=EXACT)
    reference = partial(muoneq.step, nesterov=nesterov, mode=mode)
    assert distance(rule, reference, shape) < tolerance


@pytest.mark.parametrize("phase", [1, 2, 5])
@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_the_phase_switches_from_both_sides_to_rows(shape, phase):
    rule = polarlight.rules.muoneq(polarlight.rules.rows_after(phase), polar=EXACT)
    assert distance(rule, partial(muoneq.step, phase=phase), shape) < FLOOR
    # One step earlier or later is another trajectory: 0.003 to 0.16 of the way.
    assert distance(rule, partial(muoneq.step, phase=phase + 1), shape) > 1e-3


def test_both_sides_are_equilibrated_in_one_step_less_than_the_phase():
    """The source counts steps from 1 and compares step < phase."""
    rule = polarlight.rules.muoneq(polarlight.rules.rows_after(3), polar=EXACT)
    both, rows = (
        polarlight.rules.muoneq(b, polar=EXACT) for b in (EquilibrateBoth(), EquilibrateRows())
    )
    memory = {"steps_done": torch.zeros(1, 1)}
    for t, expected in enumerate([both, both, rows, rows]):
        M = skewed(*TALL, seed=t)
        assert torch.equal(rule.direction(M, memory), expected.direction(M, {}))
    assert memory["steps_done"].item() == 4


@pytest.mark.parametrize("phase", [0, 1])
def test_the_first_step_is_the_rows_own_where_the_phase_is_over_at_once(phase):
    M = skewed(*TALL)
    balance = polarlight.rules.rows_after(phase)
    assert torch.equal(balance(M, {"steps_done": torch.zeros(1, 1)}), EquilibrateRows()(M))


def floors_share(*Ms):
    """Return the floor's largest effect on the smallest row: half its square, relative."""
    smallest = min((M.norm(dim=-1) / M.square().sum(-1).mean().sqrt()).min().item() for M in Ms)
    return (1e-4 / smallest) ** 2


def test_positive_row_rescaling_changes_nothing():
    M = skewed(*TALL)
    N = gaussian(24, 1, seed=7).exp() * M
    error = (EquilibrateRows()(N) - EquilibrateRows()(M)).abs().max().item()
    assert error < floors_share(M, N)


def test_positive_column_rescaling_changes_nothing():
    M = skewed(*WIDE)
    N = gaussian(1, 24, seed=7).exp() * M
    error = (EquilibrateColumns()(N) - EquilibrateColumns()(M)).abs().max().item()
    assert error < floors_share(M.mT, N.mT)


@pytest.mark.parametrize("size", [1.0, 1e-8])
@pytest.mark.parametrize("dim", [-1, -2])
def test_tiny_gradients_are_equilibrated_too(dim, size):
    """The published code adds 1e-8 to squared norms: rows of norm 1e-8 all get the factor 1e4."""
    balance = EquilibrateRows() if dim == -1 else EquilibrateColumns()
    norms = balance(size * gaussian(*TALL)).norm(dim=dim)
    # Half the floor's square over the square of the smallest row, 0.3 of the root mean square.
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-7, atol=0)


@pytest.mark.parametrize("balance", [EquilibrateRows(), EquilibrateColumns(), EquilibrateBoth()])
def test_zero_rows_and_columns_stay_zero(balance):
    M = skewed(*TALL)
    M[3], M[:, 2] = 0, 0
    X = balance(M)
    assert not X[3].any()
    assert not X[:, 2].any()
    assert X.isfinite().all()
    assert not balance(torch.zeros(*TALL)).any()
