"""Polar maps by factorisations, of matrices made finite, tall and scaled; zero rows stay zero."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from polarlight.linalg.isolation import isolated
from polarlight.linalg.matrices import check_matrix, unit_scale
from polarlight.linalg.properties import ROTATIONS, Invariants, Symmetries, polar_invariants
from polarlight.linalg.row_sums import Rows, check_tall
from polarlight.linalg.slot import PolarMap, Transposable

DTYPES = (torch.float32, torch.float64)


@isolated
def by_decomposition(
    M: Tensor, dtype: torch.dtype | None, polar: Callable[[Tensor], Tensor]
) -> Tensor:
    """`polar` of each matrix of M [..., m, n], in `dtype` (None: that of M, at least float32).

    `polar` sees matrices with m >= n and largest entry 1. It never sees NaN or Inf, which could
    stop a factorisation of a whole batch: such a matrix is replaced by zeros, and its result by
    NaN. Zero rows and columns come out as zeros, whatever rounding made of them.

    Raises:
        TypeError: If M is not a real floating-point tensor.
        ValueError: If M has fewer than two dimensions.
    """
    check_matrix(M)
    if M.numel() == 0:
        return M.clone()
    dtype = dtype or decomposition_dtype(M)
    X = unit_scale(M.to(torch.promote_types(M.dtype, dtype))).to(dtype)
    finite = X.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    X = torch.where(finite, X, 0.0)
    U = polar(X) if X.shape[-2] >= X.shape[-1] else polar(X.mT).mT
    U = U * (X != 0).any(-1, keepdim=True) * (X != 0).any(-2, keepdim=True)
    return torch.where(finite, U, torch.nan).to(M.dtype)


@isolated
def by_gram(
    X: Tensor, rows: Rows, dtype: torch.dtype | None, polar: Callable[[Tensor, Rows], Tensor]
) -> Tensor:
    """`by_decomposition` on a part of the rows of tall matrices, for what needs only sums.

    Raises:
        NeedsAllRowsError: Unless the whole matrix is tall.
    """
    check_tall(X, rows)
    dtype = dtype or decomposition_dtype(X)
    Y = unit_scale(X.to(torch.promote_types(X.dtype, dtype)), rows).to(dtype)
    lost = rows.sum((~Y.isfinite()).sum(dim=(-2, -1), keepdim=True).to(dtype)) != 0
    Y = torch.where(lost, 0.0, Y)
    live = rows.sum((Y != 0).sum(dim=-2, keepdim=True).to(dtype)) != 0
    U = polar(Y, rows) * (Y != 0).any(-1, keepdim=True) * live
    return torch.where(lost, torch.nan, U).to(X.dtype)


class DecompositionPolar(Transposable, PolarMap):
    """Exact polar map by a factorisation of finite, tall matrices with largest entry 1.

    Attributes:
        dtype: Dtype of the factorisation; None takes that of the input, at least float32.
    """

    __slots__ = ()
    dtype: torch.dtype | None

    @abstractmethod
    def _polar(self, X: Tensor) -> Tensor:
        """Return the polar factor of tall or square X; see `by_decomposition`."""

    def __call__(self, M: Tensor) -> Tensor:
        """Return the polar factor of M; see the class."""
        return by_decomposition(M, self.dtype, self._polar)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return rotations of both sides."""
        return ROTATIONS

    def invariants(self, m: int, n: int) -> Invariants:
        """Return those of an exact polar factor."""
        return polar_invariants()


def symmetric_eigen(S: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [..., n], rising, and eigenvectors [..., n, n] of symmetric matrices [..., n, n].

    In float32 the library's algorithm gives up on some matrices of low rank, G'G of a gradient with
    one row and few distinct values among them: these are taken in float64.
    """
    try:
        values, vectors = torch.linalg.eigh(S)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        values, vectors = torch.linalg.eigh(S.double())
    return values.to(S.dtype), vectors.to(S.dtype)


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return `dtype` where factorisations exist in it, float32 for anything narrower."""
    return dtype if dtype in DTYPES else torch.float32


def decomposition_dtype(M: Tensor) -> torch.dtype:
    """Return the dtype in which M is factorised."""
    return computing_dtype(M.dtype)


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raise ValueError unless factorisations exist in this dtype; None means that of the input."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be float32, float64 or None, got {dtype}")
