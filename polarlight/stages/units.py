"""A unit for gradients whose squares are kept: float32 cannot hold the square of 1e-30."""

from math import sqrt

import torch
from torch import Tensor

from polarlight.linalg.matrices import at_least_float32, frobenius_norm, nonzero, unit_scale


def in_units(G: Tensor, unit: Tensor) -> Tensor:
    """G [..., m, n] divided by `unit` [..., 1, 1], in float32 or float64.

    The unit is the root mean square entry of the first gradient that is not zero; that gradient
    writes it, and it stays. So moments and factors of any gradients are of the same moderate size.
    """
    X = at_least_float32(G)
    m, n = X.shape[-2:]
    unit.copy_(torch.where(unit == 0, norm_of_any_size(X) / sqrt(m * n), unit))
    return X / nonzero(unit)


def norm_of_any_size(X: Tensor) -> Tensor:
    """Return Frobenius norms, [..., m, n] -> [..., 1, 1]; squares neither over- nor underflow."""
    largest = X.abs().amax(dim=(-2, -1), keepdim=True)
    return largest * frobenius_norm(unit_scale(X))
