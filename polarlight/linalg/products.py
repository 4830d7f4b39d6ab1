"""Fused products, written so that the short side of a matrix carries them."""

import torch
from torch import Tensor


def is_tall(X: Tensor) -> bool:
    """Whether the columns are the short side; a square matrix works on its rows."""
    return X.shape[-2] > X.shape[-1]


def gram(X: Tensor) -> Tensor:
    """X'X for a tall X, XX' for any other: [..., m, n] -> [..., k, k] with k = min(m, n)."""
    return X.mT @ X if is_tall(X) else X @ X.mT


def multiply_add(C: Tensor, A: Tensor, B: Tensor, beta: float, alpha: float = 1.0) -> Tensor:
    """`beta C + alpha A B`, fused, for any number of leading dimensions."""
    if C.ndim == 2:
        return torch.addmm(C, A, B, beta=beta, alpha=alpha)
    flat = [x.reshape(-1, *x.shape[-2:]) for x in (C, A, B)]
    return torch.baddbmm(*flat, beta=beta, alpha=alpha).view(C.shape)


def times_short(X: Tensor, A: Tensor, beta: float = 0.0) -> Tensor:
    """`beta X + X A` for a tall X and `beta X + A X` for any other, A on the short side."""
    if beta == 0:
        return X @ A if is_tall(X) else A @ X
    return multiply_add(X, X, A, beta) if is_tall(X) else multiply_add(X, A, X, beta)


def gram_polynomial(R: Tensor, b: float, c: float) -> Tensor:
    """`b R + c R^2` for a Gram matrix R."""
    return b * R if c == 0 else multiply_add(R, R, R, b, c)
