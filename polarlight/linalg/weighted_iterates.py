"""A weighted sum of Newton-Schulz iterates: a soft polar factor from the products of a hard one.

    X_0 = M / |M|_4,   X_(k+1) = 2 X_k - 1.5 (X_k X_k') X_k + 0.5 (X_k X_k')^2 X_k
    S = sum_k c_k X_k,   U = S k^(1/4) / |S|_4          k = min(m, n)

A singular value that needs many steps to reach 1 gets few of the weights: with those of Soft-Muon
s comes out near s^0.1 down to 0.01 of the norm, and linearly below.

Source: nilin.github.io/contra-muon-and-soft-muon (2026); weights of record 20 of modded-nanogpt's
track 3.
Deviations: the size is that of an exact polar factor of full rank, not of the twelfth iterate.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.coefficients import SIMPLE_QUINTIC, Schedule
from polarlight.linalg.isolation import isolated
from polarlight.linalg.matrices import at_least_float32, check_matrix, nonzero
from polarlight.linalg.normalisation import SCHATTEN4, normalised
from polarlight.linalg.precision import iteration_dtype
from polarlight.linalg.products import gram, gram_polynomial, times_short
from polarlight.linalg.slot import MatrixMap, SpectralFunction
from polarlight.registry import registered

SOFT = (
    *(0.1091613623, 0.07085664498, 0.05210528973, 0.05457295795, 0.05011334061, 0.03334622198),
    *(0.05022104481, 0.1053727358, 0.1187323776, 0.1185061091, 0.1185059576, 0.1185059576),
)
"""Weights of Soft-Muon, a fit of s^0.1 above 0.01; their sum is 1."""


@registered("WeightedIterates")
@dataclass(frozen=True, slots=True)
class WeightedIterates(SpectralFunction, MatrixMap):
    """Weighted sum of the iterates of a schedule, at the Schatten-4 norm of a polar factor.

    Shapes: [..., m, n] -> [..., m, n] in the dtype of M; leading dimensions are independent.
    Cost: that of a Newton-Schulz iteration of len(weights) - 1 steps, and one Gram matrix.

    Args:
        weights: Of X_0, X_1, ...; not negative, the first ones positive.
        schedule: The quintics, at least one fewer than weights.
        dtype: Dtype of the iteration; None as for `NewtonSchulz`.

    Accuracy: a singular value s of M / |M|_4 comes out as `weighted(s)` up to the common factor and
    the rounding of the iteration's dtype. A zero matrix maps to zero.

    Raises:
        TypeError: If M is not a real floating-point tensor.
        ValueError: If M has fewer than two dimensions, or the schedule has too few quintics.

    Source: see the module.

    Examples:
        >>> from polarlight.linalg.weighted_iterates import WeightedIterates
        >>> round(WeightedIterates().weighted(0.1), 4)  # 0.1 ** 0.1 = 0.7943
        0.7942
    """

    weights: tuple[float, ...] = SOFT
    schedule: Schedule = SIMPLE_QUINTIC
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights) < 0 or not self.weights[0] > 0:
            raise ValueError(f"weights must be >= 0, the first one > 0, got {self.weights}")
        if len(self.schedule.steps) < len(self.weights) - 1:
            raise ValueError(
                f"{len(self.weights)} weights need {len(self.weights) - 1} quintics, "
                f"got {len(self.schedule.steps)}"
            )

    def weighted(self, sigma: float) -> float:
        """Return the singular value that comes out for sigma = s / |M|_4, before resizing."""
        total = self.weights[0] * sigma
        for c, (a, b, d) in zip(self.weights[1:], self.schedule.steps, strict=False):
            sigma = sigma * (a + sigma**2 * (b + sigma**2 * d))
            total += c * sigma
        return total

    @isolated
    def __call__(self, M: Tensor) -> Tensor:
        """Return the soft polar factor of M; see the class."""
        check_matrix(M)
        if M.numel() == 0:
            return M.clone()
        dtype = self.dtype or iteration_dtype(M.dtype, M.device)
        X = normalised(M, SCHATTEN4, self.schedule.safety, dtype)  # [..., m, n]
        total = self.weights[0] * X.to(M.dtype)
        for weight, (a, b, c) in zip(self.weights[1:], self.schedule.steps, strict=False):
            X = times_short(X, gram_polynomial(gram(X), b, c), a)
            total = total + weight * X.to(M.dtype)
        return _resized(total, dtype).to(M.dtype)

    def iteration_dtype(
        self, m: int, n: int, dtype: torch.dtype, device: torch.device
    ) -> torch.dtype:
        """Return the dtype of the polynomials."""
        return self.dtype or iteration_dtype(dtype, device)

    def __str__(self) -> str:
        return f"{len(self.weights)} weighted iterates, {self.schedule.name}"


def _resized(S: Tensor, dtype: torch.dtype) -> Tensor:
    """Return S at the Schatten-4 norm of an isometry, in at least float32; `dtype` of products."""
    X = at_least_float32(S)
    size = min(S.shape[-2:]) ** 0.25
    resized: Tensor = X * (size / nonzero(SCHATTEN4(X, dtype)))
    return resized
