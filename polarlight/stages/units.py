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
    largest = X.abs().amax(dim=(-2, -1), keepdim=True)
    rms = largest * frobenius_norm(unit_scale(X)) / sqrt(m * n)
    unit.copy_(torch.where(unit == 0, rms, unit))
    return X / nonzero(unit)
