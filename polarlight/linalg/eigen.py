"""The polar factor from the eigenvectors of the Gram matrix: cheaper than an SVD, and coarser.

    M'M = V L V',    Y = M V diag(1 / |M v_i|),    U = 2 Y (I + Y'Y)^-1 V'

Squaring halves the digits: eigenvectors of singular values below sqrt(eps) times the largest are
noise. The lengths of the columns M v_i replace the roots of the eigenvalues, so that all of Y have
length 1. Near the cut-off they are not orthogonal to each other: Y has singular values y up to 2.
The last step, one of Newton's for the sign, maps them to 2 y / (1 + y^2): to 1 or less, and to 1
within d^2 / 2 where y is 1 + d.

Source: Higham, "Functions of Matrices" (2008), chapter 8.
Deviations: lengths of M v_i instead of L^(1/2); the last step; relative cut-off.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.band import Band, coarser, exact_band
from polarlight.linalg.decomposition import (
    DecompositionPolar,
    by_gram,
    check_dtype,
    computing_dtype,
    symmetric_eigen,
)
from polarlight.linalg.matrices import nonzero
from polarlight.linalg.products import gram
from polarlight.linalg.row_sums import ALL_ROWS, Rows, over_rows
from polarlight.registry import registered


@registered("EigenPolar")
@dataclass(frozen=True, slots=True)
class EigenPolar(DecompositionPolar):
    """Polar factor of each matrix in a batch, by eigendecomposition of its Gram matrix.

    Shapes: [..., m, n] -> [..., m, n] in the dtype of M; leading dimensions are independent.
    Cost: 8 m n k + 11.3 k^3 flops with k = min(m, n), about two thirds of `ExactPolar`.

    Args:
        cutoff: Singular values up to this fraction of the largest count as zero, and their
            directions map to zero; in (0, 1). None takes the square root of the machine epsilon,
            3.5e-4 in float32 and 1.5e-8 in float64.
        dtype: Dtype of the decomposition: float32 or float64. None takes that of M, at least
            float32.

    Accuracy: within 5 eps / s^2 of the exact factor (relative, Frobenius), s the least singular
    value over the largest: condition 1000 is the limit in float32, 1e7 in float64. Beyond it
    directions near the cut-off mix; none is stretched, for every singular value that comes out is
    at most 1 to rounding. From six times the default cut-off on they come out at 1 - k (eps /
    s^2)^2 or more (`band`; a lower cut-off promises nothing). Zero rows and columns stay exactly
    zero; NaN or Inf anywhere makes that matrix NaN and no other.

    Raises:
        TypeError: If M is not a real floating-point tensor.
        ValueError: If M has fewer than two dimensions, or an argument is outside its range.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import EigenPolar
        >>> M = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> torch.linalg.svdvals(EigenPolar()(M)).round(decimals=4)
        tensor([1., 1.])
    """

    cutoff: float | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.cutoff is not None and not 0 < self.cutoff < 1:
            raise ValueError(f"cutoff must lie in (0, 1), got {self.cutoff}")
        check_dtype(self.dtype)

    def _on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        """Return those rows of the factor of tall matrices, from a sum of Gram matrices."""
        return by_gram(X, rows, self.dtype, self._polar)

    def _polar(self, X: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
        _, V = symmetric_eigen(_gram(X, rows))
        Y = X @ V  # [..., m, k]
        lengths = torch.linalg.vector_norm(Y, dim=-2, keepdim=True)
        if rows is not ALL_ROWS:
            lengths = over_rows(lengths.square(), rows).sqrt()
        cutoff = torch.finfo(X.dtype).eps ** 0.5 if self.cutoff is None else self.cutoff
        kept = lengths > cutoff * lengths.amax(dim=-1, keepdim=True)
        Y = Y * (kept / nonzero(lengths))
        S = _gram(Y, rows)  # [..., k, k], at least 0
        S.diagonal(dim1=-2, dim2=-1).add_(1.0)
        polar: Tensor = Y @ (2 * torch.cholesky_solve(V.mT, torch.linalg.cholesky_ex(S).L))
        return polar

    def band(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> Band:
        """Return 1, less what directions near the cut-off lose, for what is above six of it.

        Columns of Y are orthogonal up to about d = sqrt(k) eps / s^2, and the last step loses
        d^2 / 2; a search found 1.07 times that (64 x 64), twice is promised. A cut-off
        below the root of epsilon keeps columns of noise, and has no lower end.
        """
        own = self.dtype or computing_dtype(dtype)
        eps = torch.finfo(own).eps
        above = 6 * max(self.cutoff or 0.0, eps**0.5)
        if self.cutoff is not None and self.cutoff < eps**0.5:
            return exact_band(coarser(own, dtype), above, math.inf, loss=1.0)
        loss = min(m, n) * (eps / above**2) ** 2
        return exact_band(coarser(own, dtype), above, math.inf, loss)

    def __str__(self) -> str:
        return "exact (eigenvectors of the Gram matrix)"


def _gram(X: Tensor, rows: Rows) -> Tensor:
    """Return X'X of a tall or square X, [..., k, k]."""
    return X.mT @ X if rows is ALL_ROWS else gram(X, rows)
