"""Checks of the input of spectral maps, and scaling to a largest entry of 1."""

import torch
from torch import Tensor

from polarlight.linalg.row_sums import ALL_ROWS, Rows


def check_matrix(M: Tensor) -> None:
    """Refuse what no spectral map is defined for.

    Raises:
        TypeError: If M is complex, integer or boolean.
        ValueError: If M has fewer than two dimensions.
    """
    if not M.is_floating_point():
        raise TypeError(f"a spectral map needs a real floating-point matrix, got {M.dtype}")
    if M.ndim < 2:
        raise ValueError(
            f"a spectral map needs at least 2 dimensions [..., m, n], got shape {tuple(M.shape)}"
        )


def wide(dtype: torch.dtype) -> torch.dtype:
    """Float32 or float64: the dtype itself, or float32 for anything narrower."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def at_least_float32(M: Tensor) -> Tensor:
    """Return M itself in float32 or float64, a float32 copy of anything narrower."""
    return M.to(wide(M.dtype))


def unit_scale(M: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
    """Each matrix of [..., m, n] divided by its largest absolute entry, in float32 or float64.

    Squares of the result neither overflow nor vanish as a whole, so a gradient of 1e-30 or 1e30 is
    treated like one of size 1. A zero matrix stays zero; a matrix with a NaN or an Inf becomes NaN
    there. Returns a new tensor. Where M is only a part of the rows, `rows` knows of the others.
    """
    M = at_least_float32(M)
    if M.numel() == 0 and rows is ALL_ROWS:
        return M.clone()
    return M / nonzero(rows.max(largest_entry(M)))


def unit_scale_in(M: Tensor, dtype: torch.dtype, rows: Rows = ALL_ROWS) -> Tensor:
    """`unit_scale` in an iteration's dtype, as a new tensor.

    In bfloat16, whose exponents are those of float32, each matrix is multiplied by a power of two
    instead, which rounds nothing, and its largest entry ends in [1, 2): half the memory is read.
    """
    if dtype != torch.bfloat16 or M.numel() == 0:
        return unit_scale(M, rows).to(dtype)
    X = M.to(dtype)
    largest = largest_entry(X)
    factor = power_of_two_over(largest if rows is ALL_ROWS else rows.max(largest.float()).to(dtype))
    return X * factor if X is M else X.mul_(factor)


def largest_entry(M: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the largest absolute entry of each matrix, [..., m, n] -> [..., 1, 1].

    Args:
        M: The matrices.
        dtype: Dtype of the result, at least as wide as that of M, which is the default.
    """
    dtype = dtype or M.dtype
    if M.numel() == 0:
        return torch.zeros(*M.shape[:-2], 1, 1, dtype=dtype, device=M.device)
    if M.device.type != "cpu" and not torch.compiler.is_compiling():  # one pass, one launch
        norm: Tensor = torch.linalg.vector_norm(M, torch.inf, (-2, -1), keepdim=True, dtype=dtype)
        return norm
    if M.ndim == 2:  # one pass over the memory
        least, most = torch.aminmax(M)
        return torch.maximum(most, -least)[None, None].to(dtype)
    if M.dtype == torch.bfloat16:  # magnitudes are ordered as their bits are, NaN last
        bits = M.view(torch.int16).bitwise_and(0x7FFF)
        return bits.amax(dim=(-2, -1), keepdim=True).view(M.dtype).to(dtype)
    sides = (-2, -1)
    return torch.maximum(M.amax(sides, keepdim=True), -M.amin(sides, keepdim=True)).to(dtype)


def power_of_two_over(x: Tensor) -> Tensor:
    """Return 1 over the power of two just below x >= 0, in bfloat16; 1 for zero."""
    exponent = x.view(torch.int16).bitwise_and(0x7F80).view(torch.bfloat16)
    return nonzero(exponent).reciprocal()


def frobenius_norm(M: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
    """Frobenius norm of each matrix, [..., m, n] -> [..., 1, 1], in float32 or float64."""
    norm: Tensor = torch.linalg.vector_norm(M, dim=(-2, -1), keepdim=True, dtype=wide(M.dtype))
    return norm if rows is ALL_ROWS else rows.sum(norm.square()).sqrt()


def nonzero(x: Tensor) -> Tensor:
    """`x` with its zeros replaced by ones: a divisor that maps zero to zero."""
    return x + (x == 0)
