"""PMuon: the float64 reference and the oracle."""

import pytest
import torch

from polarlight.rules import muon, pmuon
from polarlight.stages.eigenbasis import PowerIteration
from polarlight.stages.momentum_power import MomentumPower
from tests.matrices import SHAPES, skewed
from tests.oracle import A, B, numbers, updates
from tests.reference import pmuon as reference
from tests.rules.rotated import distance
from tests.rules.trajectory import EXACT


@pytest.mark.parametrize("shape", SHAPES)
def test_fifty_steps_follow_the_reference(shape):
    # Where the sum's own shift of 1e-6 keeps it definite, the refresh needs no floor.
    rule = pmuon(polar=EXACT, refresh=PowerIteration(sort=False, floor=0.0))
    # Directions that only that shift tells apart amplify rounding. Measured here: 5e-8 of the tall
    # matrix, 4e-11 of the wide one, 1e-14 of the square one.
    assert distance(rule, reference.step, shape) < 1e-5


def test_the_oracle_with_exact_eigenvectors():
    expected = numbers([0.785863, -0.618141, 0.017929], [0.611137, 0.780736, 0.130240])
    rule = pmuon(polar=EXACT, refresh=PowerIteration(rounds=300, sort=False))
    # The oracle's shift is 1e-6 itself, on eigenvalues of about 0.1.
    torch.testing.assert_close(updates(rule, A, B)[1], expected, rtol=0, atol=1e-5)


def test_power_zero_is_muon():
    M = skewed(12, 6)
    rule = pmuon(exponent=0.0, polar=EXACT)
    torch.testing.assert_close(updates(rule, M, M), updates(muon(polar=EXACT), M, M))


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"beta": 1.0}, r"beta must lie in \[0, 1\)"),
        ({"exponent": 0.1}, r"exponent must lie in \[-1, 0\], got 0.1"),
        ({"floor": 0.0}, "floor must be > 0, got 0.0"),
    ],
)
def test_invalid_arguments_raise_with_their_value(numbers, said):
    with pytest.raises(ValueError, match=said):
        MomentumPower(**numbers)
