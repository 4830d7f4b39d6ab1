"""Row norms and leverages, in float32 or float64 and free of absolute floors."""

import torch
from torch import Tensor

from polarlight.linalg.matrices import nonzero, wide
from polarlight.linalg.row_sums import ALL_ROWS, Rows, over_rows


def row_norms(M: Tensor) -> Tensor:
    """Euclidean norm of each row, [..., m, n] -> [..., m, 1], in float32 or float64."""
    norms: Tensor = torch.linalg.vector_norm(M, dim=-1, keepdim=True, dtype=wide(M.dtype))
    return norms


def rms_row_norm(norms: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
    """Root mean square over the rows of their norms, [..., m, 1] -> [..., 1, 1]."""
    if rows is ALL_ROWS:
        return norms.square().mean(dim=-2, keepdim=True).sqrt()
    return (over_rows(norms.square(), rows) / rows.count(norms)).sqrt()


def leverage(U: Tensor) -> Tensor:
    """Squared row norms of an orthonormal factor, [..., m, n] -> [..., m, 1].

    For a tall U with orthonormal columns they lie in [0, 1] and sum to n; n/m is an equal share.
    """
    return row_norms(U).square()


def inverse_row_norms(M: Tensor, floor: float, rows: Rows = ALL_ROWS) -> Tensor:
    """One over each row norm, [..., m, n] -> [..., m, 1]; see `inverse`."""
    return inverse(row_norms(M), floor, rows)


def inverse(norms: Tensor, floor: float, rows: Rows = ALL_ROWS) -> Tensor:
    """One over each norm, [..., m, 1] -> [..., m, 1], bounded by 1 / (floor * rms norm).

    Norms far above `floor` times their rms are inverted exactly to within `floor`'s square; those
    far below it become the bound alone, so noise is not blown up to a full row. Zeros give ones.
    """
    floored = norms.square() + (floor * rms_row_norm(norms, rows)).square()
    return nonzero(floored.sqrt()).reciprocal()


def row_significance(M: Tensor, floor: float, rows: Rows = ALL_ROWS) -> Tensor:
    """Return the `significance` of each row over the noise, [..., m, n] -> [..., m, 1]."""
    return significance(row_norms(M), floor, rows)


def significance(norms: Tensor, floor: float, rows: Rows = ALL_ROWS) -> Tensor:
    """Return the significance of each norm over the noise, [..., m, 1] -> [..., m, 1]: 0 to 1.

    With x the norm over `floor` times the rms of all: 1 / sqrt(1 + x^-4), which is 1 far above the
    floor, x squared far below it, and 0 for zero.
    """
    fourth = (norms / nonzero(floor * rms_row_norm(norms, rows))) ** 4
    return (fourth / (1 + fourth)).sqrt()


def leverage_correction(
    U: Tensor, weight: Tensor, exponent: float | None, rows: Rows = ALL_ROWS
) -> Tensor:
    """(fair share / leverage)^exponent of each row of U, [..., m, n] -> [..., m, 1].

    The fair share is that part of the leverage which `weight` gives the row: 1 for a row that
    counts, less for noise, 0 for a zero row. An exponent of None is `shape_exponent`.
    """
    m, n = rows.count(U), U.shape[-1]
    h = leverage(U)
    fair = weight * (over_rows(h, rows) / nonzero(over_rows(weight, rows)))
    return (fair / nonzero(h)) ** (shape_exponent(m, n) if exponent is None else exponent)


def check_exponent(exponent: float | None) -> None:
    """Raise ValueError unless the exponent lies in (0, 1] or is None."""
    if exponent is not None and not 0 < exponent <= 1:
        raise ValueError(f"exponent must lie in (0, 1] or be None, got {exponent}")


def shape_exponent(m: int, n: int) -> float:
    """1 / (2 (1 - n/m)), where the mean error mode vanishes, and at most 1, where none grows."""
    return min(1.0, 1 / (2 * (1 - n / m))) if m > n else 1.0


def check_floor(floor: float) -> None:
    """Raise ValueError unless the floor can separate rows from noise."""
    if not 0 < floor < 1:
        raise ValueError(f"floor must lie in (0, 1), got {floor}")
