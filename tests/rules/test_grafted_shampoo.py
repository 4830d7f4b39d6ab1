"""Grafted Shampoo: the float64 reference, the oracles, Adam's steps before the first powers."""

from functools import partial

import pytest
import torch

from polarlight.rules import grafted_shampoo
from polarlight.stages.grafted_shampoo import GraftedShampoo
from tests.matrices import SHAPES
from tests.oracle import SIX_DIGITS, A, B, numbers, updates
from tests.reference import grafted_shampoo as reference
from tests.rules.trajectory import distance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("every", [1, 3])
def test_steps_follow_the_reference(shape, every):
    # Measured here: 7e-10 and 2.3e-9, by eigenvalues near the cut-off of the pseudo-inverse.
    rule = grafted_shampoo(every=every)
    assert distance(rule, partial(reference.step, every=every), shape) < 1e-7


def test_the_oracles_of_results_21_and_35():
    expected = numbers([1.234184, -0.601528, 0.150428], [0.792943, 1.019792, -0.265867])
    torch.testing.assert_close(updates(grafted_shampoo(), A, B)[1], expected, **SIX_DIGITS)
    expected = numbers([1.238473, -0.602264, 0.153729], [0.795013, 1.018932, -0.273739])
    rule = grafted_shampoo(betas=(0.9, 0.9), shampoo_beta=0.9)
    torch.testing.assert_close(updates(rule, A, B)[1], expected, **SIX_DIGITS)


def test_before_the_first_powers_the_direction_is_adams():
    first = updates(grafted_shampoo(every=5), A)[0]
    torch.testing.assert_close(first, A.sign(), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"beta1": 1.0}, r"beta1 must lie in \[0, 1\)"),
        ({"eps": -1.0}, "eps must be >= 0"),
        ({"exponent": -2.0}, r"exponent must lie in \[-1, 0\], got -2.0"),
        ({"every": 0}, "every must be >= 1, got 0"),
    ],
)
def test_invalid_arguments_raise_with_their_value(numbers, said):
    with pytest.raises(ValueError, match=said):
        GraftedShampoo(**numbers)
