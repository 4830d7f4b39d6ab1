"""Row norms and leverages, in float32 or float64 and free of absolute floors."""

import torch
from torch import Tensor

from polarlight.linalg.matrices import at_least_float32


def row_norms(M: Tensor) -> Tensor:
    """Euclidean norm of each row, [..., m, n] -> [..., m, 1], in float32 or float64."""
    return torch.linalg.vector_norm(at_least_float32(M), dim=-1, keepdim=True)


def rms_row_norm(norms: Tensor) -> Tensor:
    """Root mean square over the rows of their norms, [..., m, 1] -> [..., 1, 1]."""
    return norms.square().mean(dim=-2, keepdim=True).sqrt()


def leverage(U: Tensor) -> Tensor:
    """Squared row norms of an orthonormal factor, [..., m, n] -> [..., m, 1].

    For a tall U with orthonormal columns they lie in [0, 1] and sum to n; n/m is an equal share.
    """
    return row_norms(U).square()


def inverse_row_norms(M: Tensor, floor: float) -> Tensor:
    """One over each row norm, [..., m, n] -> [..., m, 1], bounded by 1 / (floor * rms row norm).

    Rows far above `floor` times the rms row norm are inverted exactly to within `floor`'s square;
    rows far below it are scaled by the bound alone, so noise is not blown up to a full row. A zero
    matrix gives ones.
    """
    norms = row_norms(M)
    bounded = (norms.square() + (floor * rms_row_norm(norms)).square()).sqrt()
    return torch.where(bounded == 0, 1.0, bounded.reciprocal())
