"""Rest: a matrix whose gradients have stayed zero is not stepped from the remains of its momentum.

A map that removes magnitude makes a full step of any momentum, however small. Where the gradients
of a matrix are exactly zero (an expert without tokens), its momentum only shrinks, and without a
floor it is stepped at full size until its last denormal is gone. Here it is replaced by zero once

    max |M_ij| < FLOOR * (max |M_ij| at its last rise),

with the largest entry taken at each step. FLOOR is the rounding level of float32: what is left then
would not change a bit of the momentum at its last rise, were it added.

The reference is each matrix's own and moves with it, so the scale of the gradients cancels, and any
gradient that lifts the largest entry ends the rest at once, however small it is against earlier
ones: a decay of the loss over many decades and a spike in it stop nothing. The price: a momentum
that shrinks in every single step, by 8e6 in all, rests although its gradients are not zero. At
momentum beta, rest comes ln(FLOOR) / ln(beta) steps after the last gradient: 311 at 0.95.
"""

import torch
from torch import Tensor

from polarlight.linalg import foreach
from polarlight.linalg.matrices import largest_entry, power_of_two_over
from polarlight.linalg.row_sums import ALL_ROWS, Rows

FLOOR = 2.0**-23
"""Fraction of its last rise below which a momentum that has shrunk ever since counts as zero."""

SIZES = "momentum_sizes"
"""Buffer [..., 1, 2]: the largest entry at its last rise, and in the step before."""

PER_MATRIX = (1, 2)
"""Its trailing dimensions, whatever the matrix: every process that has a part of it has both."""


def sizes_shape(shape: torch.Size) -> torch.Size:
    """Return the shape of the buffer for matrices [..., m, n]: two numbers each."""
    return torch.Size((*shape[:-2], *PER_MATRIX))


def zero_at_rest(
    M: Tensor,
    sizes: Tensor,
    dtype: torch.dtype,
    rows: Rows = ALL_ROWS,
    *,
    scratch: bool = False,
) -> Tensor:
    """Return M, or zero for the matrices of [..., m, n] that are at rest; updates `sizes`.

    Args:
        M: What a rule is about to map.
        sizes: The buffer.
        dtype: The dtype in which M is going to be read: sizes are those of M in it.
        rows: All rows, or those that M has some of.
        scratch: Whether the result may be written to M.
    """
    size = largest_entry(M, sizes.dtype)
    if dtype != M.dtype:
        size = size.to(dtype).to(sizes.dtype)
    factor = moving(rows.max(size), sizes)
    return M.mul_(factor) if scratch else M * factor


def unit_scale_or_zero_(X: Tensor, sizes: Tensor | None) -> Tensor:
    """Write `unit_scale_in` of bfloat16 matrices [..., m, n] to X, zero for those at rest.

    One pass for both; updates `sizes`. Without sizes nothing is at rest.
    """
    if X.numel() == 0:
        return X
    largest = largest_entry(X)
    factor = power_of_two_over(largest)
    if sizes is not None:
        factor = factor * moving(largest.to(sizes.dtype), sizes)
    return X.mul_(factor)


def moving(size: Tensor, sizes: Tensor) -> Tensor:
    """Return which matrices are not at rest, bool [..., 1, 1]; updates `sizes`.

    Args:
        size: Of each matrix now, [..., 1, 1], by any measure that falls where all entries do.
        sizes: The buffer.
    """
    kept = sizes.split(1, dim=-1)
    risen = torch.where(size > kept[1], size, kept[0])
    foreach.copy_(kept, [risen, size])
    return (size < FLOOR * risen).logical_not()  # a NaN goes on
