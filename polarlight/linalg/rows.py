"""Row norms and leverages, in float32 or float64 and free of absolute floors."""

import torch
from torch import Tensor

from polarlight.linalg.matrices import at_least_float32, nonzero


def row_norms(M: Tensor) -> Tensor:
    """Euclidean norm of each row, [..., m, n] -> [..., m, 1], in float32 or float64."""
    norms: Tensor = torch.linalg.vector_norm(at_least_float32(M), dim=-1, keepdim=True)
    return norms


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
    return 1 / nonzero(_bounded(row_norms(M), floor))


def row_significance(M: Tensor, floor: float) -> Tensor:
    """How far each row stands above the noise, [..., m, n] -> [..., m, 1]: 0 to 1.

    With x the row norm over `floor` times the rms row norm: 1 / sqrt(1 + x^-4), which is 1 far
    above the floor, x squared far below it, and 0 for a zero row.
    """
    norms = row_norms(M)
    fourth = (norms / nonzero(floor * rms_row_norm(norms))) ** 4
    return (fourth / (1 + fourth)).sqrt()


def check_floor(floor: float) -> None:
    """Raises ValueError unless the floor can separate rows from noise."""
    if not 0 < floor < 1:
        raise ValueError(f"floor must lie in (0, 1), got {floor}")


def _bounded(norms: Tensor, floor: float) -> Tensor:
    return (norms.square() + (floor * rms_row_norm(norms)).square()).sqrt()
