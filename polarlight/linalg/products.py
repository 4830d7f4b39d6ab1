"""Fused products, written so that the short side of a matrix carries them.

Gram matrices and everything made of one by products are symmetric, so that half of their entries
can be mirrored. `gram`, `symmetric_multiply_add` and `gram_polynomial` do that where it pays: on a
CPU by panels of rows, of which each computes its part on and right of the diagonal, on a GPU by the
kernels of another package where it is installed (`quack.py`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from polarlight.linalg import quack
from polarlight.linalg.cost import note_symmetric
from polarlight.linalg.matrices import at_least_float32
from polarlight.linalg.row_sums import ALL_ROWS, Rows

Panel = Callable[[slice, slice, Tensor], Tensor]
"""Writes a symmetric matrix's (rows, columns from the diagonal on) to where it is told."""

PANEL = 256
"""Rows of a panel: a few panels for the sizes below."""

PANELS_FROM = 512
"""Least side that is cut into panels: products of smaller ones lose as much speed as they save."""

PANELS_FROM_IN_HALF = 768
"""The same in bfloat16 and float16, and only for rows at least twice as long as there are rows:
CPUs with AMX multiply large squares so fast that cutting them loses (`docs/performance.md`)."""


def is_tall(X: Tensor) -> bool:
    """Return True if the columns are the short side; a square matrix works on its rows."""
    return X.shape[-2] > X.shape[-1]


def gram(X: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
    """Return X'X for a tall X, XX' for any other: [..., m, n] -> [..., k, k] with k = min(m, n).

    Where X has some of the `rows` of a tall matrix: that matrix's X'X, [..., n, n].
    """
    if rows is not ALL_ROWS:
        return _summed_gram(X, rows)
    W = X.mT if is_tall(X) else X
    if quack.takes(W):
        return quack.symmetric_product(W, W.mT)
    if not _in_panels(W):
        product = W @ W.mT
        note_symmetric(product, inner=W.shape[-1])
        return product
    return _mirrored(
        W, lambda rows, rest, out: torch.matmul(W[..., rows, :], W[..., rest, :].mT, out=out)
    )


def multiply_add(C: Tensor, A: Tensor, B: Tensor, beta: float, alpha: float = 1.0) -> Tensor:
    """Return `beta C + alpha A B`, fused, for any number of leading dimensions."""
    if C.ndim == 2:
        return torch.addmm(C, A, B, beta=beta, alpha=alpha)
    if C.ndim == 3:
        return torch.baddbmm(C, A, B, beta=beta, alpha=alpha)
    flat = [x.reshape(-1, *x.shape[-2:]) for x in (C, A, B)]
    return torch.baddbmm(*flat, beta=beta, alpha=alpha).view(C.shape)


def symmetric_multiply_add(
    C: Tensor, A: Tensor, B: Tensor, beta: float, alpha: float = 1.0
) -> Tensor:
    """Return `beta C + alpha A B`, symmetric, for symmetric C, A and B of which A and B commute.

    Shapes: [..., k, k] each. Where rounding makes the product of a commuting pair a little
    unsymmetric, the entries right of the diagonal count.
    """
    if quack.takes(C, A, B):
        return quack.symmetric_product(A, B, C, beta, alpha)
    if not _in_panels(C):
        note_symmetric(C, inner=A.shape[-1])
        return multiply_add(C, A, B, beta, alpha)

    def panel(rows: slice, rest: slice, out: Tensor) -> Tensor:
        part = C[..., rows, rest], A[..., rows, :], B[..., :, rest]
        if C.ndim == 2:
            return torch.addmm(*part, beta=beta, alpha=alpha, out=out)
        return out.copy_(multiply_add(*part, beta, alpha))

    return _mirrored(C, panel)


def times_short(X: Tensor, A: Tensor, beta: float = 0.0, rows: Rows = ALL_ROWS) -> Tensor:
    """Return `beta X + X A` for a tall X and `beta X + A X` for any other, A on the short side.

    Where X has some of the `rows` of a matrix, that one is tall. The addend stays out of A: on its
    diagonal, bfloat16 would round it (`docs/log.md`). Scalars stay as few as the schedules have: a
    CPU's library compiles a product anew for each pair of them.
    """
    tall = rows is not ALL_ROWS or is_tall(X)
    if beta == 0:
        return X @ A if tall else A @ X
    return multiply_add(X, X, A, beta) if tall else multiply_add(X, A, X, beta)


def gram_polynomial(R: Tensor, b: float, c: float) -> Tensor:
    """Return `b R + c R^2` for a Gram matrix R."""
    if c == 0:
        return b * R
    return symmetric_multiply_add(R, R, R, b, c)


def _in_panels(X: Tensor) -> bool:
    """Return True if XX' [..., k, k] of X [..., k, l] is cheaper in panels."""
    if X.device.type != "cpu":
        return False
    k, length = X.shape[-2:]
    if X.dtype.itemsize > 2:
        return k >= PANELS_FROM
    return k >= PANELS_FROM_IN_HALF and length >= 2 * k


def _summed_gram(X: Tensor, rows: Rows) -> Tensor:
    """Return X'X over all rows: panels from the diagonal on are summed, in at least float32."""
    n = X.shape[-1]
    starts = range(0, n, PANEL)
    parts = [X[..., i : i + PANEL].mT @ X[..., i:] for i in starts]
    flat = torch.cat([at_least_float32(part).flatten(-2) for part in parts], dim=-1)
    sizes = [part.shape[-2:].numel() for part in parts]
    summed = iter(rows.sum(flat).to(X.dtype).split(sizes, dim=-1))

    def panel(some: slice, rest: slice, out: Tensor) -> Tensor:
        return out.copy_(next(summed).view(out.shape))

    return _mirrored(X.mT, panel)


def _mirrored(like: Tensor, panel: Panel) -> Tensor:
    """Return the symmetric matrix [..., k, k] of these panels of rows, from the diagonal on."""
    k = like.shape[-2]
    result = torch.empty(*like.shape[:-2], k, k, dtype=like.dtype, device=like.device)
    for start in range(0, k, PANEL):
        end = min(start + PANEL, k)
        part = result[..., start:end, start:]
        panel(slice(start, end), slice(start, k), part)
        result[..., end:, start:end] = part[..., end - start :].mT
    return result
