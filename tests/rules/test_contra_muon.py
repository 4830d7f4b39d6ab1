"""Contra-Muon: the float64 reference in both forms, the oracles, and a fraction that moves."""

from functools import partial

import numpy as np
import pytest
import torch

from polarlight.linalg import Frobenius
from polarlight.rules import contra_muon
from polarlight.stages.interpolated import PowerIterationNorm
from polarlight.stages.ramp import Ramp
from tests.matrices import SHAPES, skewed
from tests.oracle import SIX_DIGITS, A, numbers, updates
from tests.reference import contra_muon as reference
from tests.rules.trajectory import EXACT, ROUNDING, distance

POWER_FORM = {"norm": PowerIterationNorm(), "size": Frobenius()}


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape):
    assert distance(contra_muon(polar=EXACT), reference.step, shape) < ROUNDING
    power = partial(reference.step, op=reference.power_iterations, size=np.linalg.norm)
    assert distance(contra_muon(polar=EXACT, **POWER_FORM), power, shape) < ROUNDING


@pytest.mark.parametrize("shape", SHAPES)
def test_a_moving_fraction_follows_the_reference(shape):
    ramp = Ramp(0.3, 0.0, 2, 7)
    moving = partial(reference.step, c=lambda t: 0.3 * (1 - min(max((t - 2) / 5, 0), 1)))
    assert distance(contra_muon(polar=EXACT, contra=ramp), moving, shape) < ROUNDING


def test_updates_follow_the_oracles():
    power = numbers([0.926038, -0.042480, 0.358239], [0.273280, 0.673999, -0.695239])
    rule = contra_muon(polar=EXACT, **POWER_FORM)
    torch.testing.assert_close(updates(rule, A)[0], power, **SIX_DIGITS)
    schatten = numbers([0.927209, -0.041364, 0.357328], [0.274600, 0.673292, -0.693974])
    torch.testing.assert_close(updates(contra_muon(polar=EXACT), A)[0], schatten, **SIX_DIGITS)


def test_five_power_iterations_find_the_oracles_norm():
    assert PowerIterationNorm()(A, A.dtype).item() == pytest.approx(3.254429, abs=1e-6)


def test_the_largest_direction_shrinks_most():
    M = skewed(12, 6)
    U, _, Vt = torch.linalg.svd(M, full_matrices=False)
    D = contra_muon(polar=EXACT, contra=0.5).direction(M, {})
    found = (U.mT @ D @ Vt.mT).diagonal()
    assert found.diff().min() > 0  # s falls, what comes out rises
    torch.testing.assert_close(U @ torch.diag(found) @ Vt, D)


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="rounds must be >= 1, got 0"):
        PowerIterationNorm(0)
