"""Tempered polar factor: the float64 reference and the oracle."""

from functools import partial

import pytest
import torch

from polarlight.rules import tempered_muon
from tests.matrices import SHAPES
from tests.oracle import SIX_DIGITS, A, numbers, updates
from tests.reference import tempered_muon as reference
from tests.rules.trajectory import EXACT, ROUNDING, distance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rho", [0.05, 0.5])
def test_steps_follow_the_reference(shape, rho):
    rule = tempered_muon(polar=EXACT, rho=rho)
    assert distance(rule, partial(reference.step, rho=rho), shape) < ROUNDING


def test_updates_follow_the_oracle():
    expected = numbers([0.937036, -0.032998, 0.350842], [0.284847, 0.668687, -0.685186])
    torch.testing.assert_close(updates(tempered_muon(polar=EXACT), A)[0], expected, **SIX_DIGITS)


def test_a_cap_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="most must be > 0, got 0"):
        tempered_muon(most=0)
