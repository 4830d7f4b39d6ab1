"""Rest and unit scale in one pass: the bits of two."""

import pytest
import torch

from polarlight.linalg.matrices import unit_scale_in
from polarlight.linalg.rest import unit_scale_or_zero_, zero_at_rest
from tests.matrices import gaussian


@pytest.mark.parametrize("shape", [(6, 4), (3, 6, 4), (2, 3, 4, 6)], ids=str)
@pytest.mark.parametrize("size", [1.0, 3e-30, 7e30])
def test_one_pass_has_the_bits_of_a_mask_and_a_scale(shape, size):
    M = (gaussian(*shape) * size).bfloat16()
    sizes, alike = (torch.zeros(*shape[:-2], 1, 2) for _ in range(2))
    for shrunk in (1.0, 2.0**-10, 2.0**-30, 0.0, 1.0):  # the third and fourth are at rest
        X = M * shrunk
        expected = unit_scale_in(zero_at_rest(X, sizes, X.dtype), X.dtype)
        found = unit_scale_or_zero_(X, alike)
        assert found is X
        assert torch.equal(found, expected)
        assert torch.equal(sizes, alike)
        assert bool(found.any()) == (shrunk > 2.0**-23)


def test_without_sizes_nothing_is_at_rest():
    M = (gaussian(6, 4) * 1e-20).bfloat16()
    assert torch.equal(unit_scale_or_zero_(M.clone(), None), unit_scale_in(M, M.dtype))
    assert unit_scale_or_zero_(torch.zeros(0, 4, dtype=M.dtype), None).shape == (0, 4)
