"""A polar factor that is continuous: small singular values are led to zero instead of to one.

    f(M) = M (M'M + delta s^2 I)^(-1/2),        s^2 = |M|_F^2 / k, the mean squared singular value

The polar factor jumps where a singular value passes zero; stability arguments for training need a
Lipschitz map. Here a singular value x s becomes x / sqrt(x^2 + delta).

Lipschitz constant: df at M has norm at most sqrt(k / delta) / |M|_F, reached at a singular M.
Between any A and B, |f(A) - f(B)|_F <= (pi / 2) sqrt(k / delta) |A - B|_F / min(|A|_F, |B|_F). (f
depends on the direction of M alone, and there s is constant, so that only x -> x / sqrt(x^2 +
delta) counts, whose slope is at most 1 / sqrt(delta); an arc is at most pi / 2 times its chord.)

Source: arXiv 2606.01720 (2026) for M (M'M + delta I)^(-1/2).
Deviations: delta is relative to the mean squared singular value, so that the scale of M does not
matter. The map is then Lipschitz on directions, with a constant that falls as 1 / |M|_F.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.band import EXACT_ROUNDING, REACH, Band, coarser, exact_band
from polarlight.linalg.decomposition import (
    by_decomposition,
    by_gram,
    check_dtype,
    computing_dtype,
    symmetric_eigen,
)
from polarlight.linalg.matrices import nonzero
from polarlight.linalg.products import gram
from polarlight.linalg.row_sums import ALL_ROWS, Rows
from polarlight.linalg.slot import PolarMap, SpectralFunction, Transposable
from polarlight.registry import registered


@registered("RegularisedPolar")
@dataclass(frozen=True, slots=True)
class RegularisedPolar(SpectralFunction, Transposable, PolarMap):
    """M (M'M + delta s^2 I)^(-1/2) for each matrix in a batch, s the rms singular value.

    Shapes: [..., m, n] -> [..., m, n] in the dtype of M; leading dimensions are independent.
    Cost: 4 m n k + 11 k^3 flops with k = min(m, n).

    Args:
        delta: Damping, relative to the mean squared singular value; positive. A singular value
            equal to the rms comes out as 1 / sqrt(1 + delta), one of sqrt(delta) rms as 0.71.
        dtype: Dtype of the decomposition: float32 or float64. None takes that of M, at least
            float32.

    Accuracy: entries within 10 eps (1 + k / delta), the worst case for ill-conditioned matrices:
    the Gram matrix has norm up to k s^2, next to which delta s^2 is small. Small deltas want
    float64. No singular value is above 1 by more than 60 + 2 k epsilons (`band`; a search found
    102 at 128 x 96).
    Zero maps to zero, and zero rows and columns stay exactly zero; NaN or Inf anywhere makes that
    matrix NaN and no other.

    Raises:
        TypeError: If M is not a real floating-point tensor.
        ValueError: If M has fewer than two dimensions, or an argument is outside its range.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import RegularisedPolar
        >>> M = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> small = RegularisedPolar(delta=1.0)(M)[1, 1]  # 0.5 beside an rms of 2.15
        >>> round(small.item(), 3)
        0.226
    """

    delta: float = 1e-3
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not 0 < self.delta < math.inf:
            raise ValueError(f"delta must be positive and finite, got {self.delta}")
        check_dtype(self.dtype)

    def __call__(self, M: Tensor) -> Tensor:
        """Return the damped polar factor of M; see the class."""
        return by_decomposition(M, self.dtype, self._map)

    def _on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        """Return those rows of the factor of tall matrices, from a sum of Gram matrices."""
        return by_gram(X, rows, self.dtype, self._map)

    def lipschitz(self, m: int, n: int) -> float:
        """sqrt(k / delta), the greatest slope of the map at an m x n matrix of Frobenius norm 1."""
        return math.sqrt(min(m, n) / self.delta)

    def _map(self, X: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
        R = X.mT @ X if rows is ALL_ROWS else gram(X, rows)
        mean = R.diagonal(dim1=-2, dim2=-1).mean(dim=-1, keepdim=True)
        squares, V = symmetric_eigen(R)
        damped = nonzero(squares.clamp_min(0) + self.delta * mean)
        damped_polar: Tensor = X @ ((V * damped.rsqrt().unsqueeze(-2)) @ V.mT)
        return damped_polar

    def band(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> Band:
        """Return x / sqrt(x^2 + delta), less rounding, for the least x that is promised."""
        own = self.dtype or computing_dtype(dtype)
        k, eps = min(m, n), torch.finfo(own).eps
        x = REACH * math.sqrt(k)  # relative to the rms singular value
        loss = 1 - x / math.sqrt(x * x + self.delta) + 10 * eps * (1 + k / self.delta)
        # Large eigenvalues are rounded by about k eps, and nothing afterwards makes up for it.
        return exact_band(coarser(own, dtype), REACH, 2.0, loss, EXACT_ROUNDING + 2 * k)

    def __str__(self) -> str:
        return f"regularised, delta {self.delta:g}"
