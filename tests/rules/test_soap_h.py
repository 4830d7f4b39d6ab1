"""SOAP-H: the float64 reference and the oracle."""

import pytest
import torch

from polarlight.rules import soap_h
from tests.matrices import SHAPES, SQUARE, gaussian
from tests.oracle import SIX_DIGITS, A, B, numbers, updates
from tests.reference import soap_h as reference
from tests.rules.rotated import distance


@pytest.mark.parametrize("shape", [SQUARE, (12, 10)])
def test_fifty_steps_follow_the_reference(shape):
    # Measured here: 7e-14; bases amplify rounding.
    assert distance(soap_h(eps=0.0), reference.step, shape) < 1e-9


def test_updates_follow_the_oracle():
    expected = numbers([0.193338, -0.254874, 0.019620], [0.211377, 0.144029, -0.016797])
    torch.testing.assert_close(updates(soap_h(), A, B)[1], expected, **SIX_DIGITS)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_step_is_a_polar_factor(shape):
    """In its own bases the first gradient is diagonal, and each entry is divided by its size."""
    U = updates(soap_h(eps=0.0), gaussian(*shape))[0]
    sigma = torch.linalg.svdvals(U)
    torch.testing.assert_close(sigma, torch.full_like(sigma, 0.05 / 0.1**0.5))
