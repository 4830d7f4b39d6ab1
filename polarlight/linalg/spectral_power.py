"""Powers of the singular values: sigma -> sigma^p for p in [-1, 1], exact and by rational steps.

Both maps see M / |M|_F, so their result does not depend on the scale of M; |M|_F^p times it is the
power of M itself. p = 0 is the polar factor, p = 1 the matrix, p < 0 turns the spectrum upside down
and needs a floor: below it the result is linear in sigma and vanishes with it.

Source: the coupled iteration of Freon (2026), arXiv 2605.11181, which for b = 2 is QDWH.
Deviations: the coefficients are generated here, optimal for every b; the first step is applied to
the matrix itself, so that its small singular values are never squared in floating point.
"""

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from polarlight.linalg.decomposition import by_decomposition, check_dtype
from polarlight.linalg.lru_cache_eager import lru_cache_eager
from polarlight.linalg.matrices import frobenius_norm, nonzero
from polarlight.linalg.slot import MatrixMap, SpectralFunction
from polarlight.registry import registered

RationalStep = tuple[float, float, float]
"""(alpha, beta, gamma) of W = (alpha I + beta A) (I + gamma A)^-1."""

CONVERGED = 1e-4
"""Steps are added until the eigenvalues of A lie in [1 - CONVERGED, 1]."""

FLOAT32_BOUND = 1e-4
"""The smallest design bound whose steps survive the rounding of float32."""

NEGATIVE_FLOOR = 1e-3
"""Below this fraction of |M|_F a negative power is linear: where float32 can still follow it."""


@runtime_checkable
class SpectralPower(Protocol):
    """A map [..., m, n] -> [..., m, n] that raises the singular values of M / |M|_F to a power."""

    @property
    def exponent(self) -> float:
        """The power p."""

    def __call__(self, M: Tensor) -> Tensor:
        """The matrix with the singular vectors of M and the singular values (sigma / |M|_F)^p."""


@registered("ExactPower")
@dataclass(frozen=True, slots=True)
class ExactPower(SpectralFunction, MatrixMap):
    """Power of the singular values of M / |M|_F by decomposition, [..., m, n] -> [..., m, n].

    Args:
        exponent: The power p, in [-1, 1].
        floor: Fraction of |M|_F below which sigma^p is continued as the straight line through zero,
            sigma floor^(p-1); in [0, 1). None takes 1e-3 for p < 0 and 0 otherwise.
        dtype: Dtype of the decomposition: float32 or float64. None takes that of M, at least
            float32.

    Accuracy: a few machine epsilons over the smallest singular value kept. Singular values up to
    max(m, n) machine epsilons of the largest are noise and map to zero, and so does a zero matrix.
    NaN or Inf anywhere makes that matrix NaN and no other.

    Raises:
        TypeError: If M is not a real floating-point tensor.
        ValueError: If M has fewer than two dimensions or an argument is out of range.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import ExactPower
        >>> M = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> U = ExactPower(0.5)(M)
        >>> round((U[0, 0] / U[1, 1]).item(), 3)  # the root of 3 / 0.5
        2.449
    """

    exponent: float
    floor: float | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not -1 <= self.exponent <= 1:
            raise ValueError(f"exponent must lie in [-1, 1], got {self.exponent}")
        if self.floor is not None and not 0 <= self.floor < 1:
            raise ValueError(f"floor must lie in [0, 1), got {self.floor}")
        check_dtype(self.dtype)

    def __call__(self, M: Tensor) -> Tensor:
        """Return the power of M; see the class."""
        return by_decomposition(M, self.dtype, self._power)

    def _power(self, X: Tensor) -> Tensor:
        X = X / nonzero(frobenius_norm(X))
        U, S, Vh = torch.linalg.svd(X, full_matrices=False)
        floor = self.floor
        if floor is None:
            floor = NEGATIVE_FLOOR if self.exponent < 0 else 0.0
        kept = max(X.shape[-2:]) * torch.finfo(X.dtype).eps * S[..., :1] < S
        powers = S * nonzero(S.clamp_min(floor)) ** (self.exponent - 1)
        power: Tensor = (U * torch.where(kept, powers, 0.0).unsqueeze(-2)) @ Vh
        return power

    def __str__(self) -> str:
        return f"sigma^{self.exponent:.3g}, exact (SVD)"


@registered("RationalPower")
@dataclass(frozen=True, slots=True)
class RationalPower(SpectralFunction, MatrixMap):
    """Power 1 - 2 a/b of the singular values of M / |M|_F, [..., m, n] -> [..., m, n].

        A = X'X,  C = I;   W = (alpha I + beta A) (I + gamma A)^-1,
        A <- W^(b/2) A W^(b/2),   C <- W C   until A = I, C = (X'X)^(-1/b);   the result is X C^a

    Products and Cholesky factors on the shorter side alone: no decomposition, no waiting for the
    device. Odd roots are even ones: a/b = 2/3 is a = 4, b = 6. Cost: 8 m n k flops for the matrix
    and, for b = 6, a = 4 and the default bound, about 31 k^3 for three steps.

    Args:
        b: The root, even and at least 2.
        a: Its power, in [0, b].
        lower: Fraction of |M|_F from which on singular values arrive, in (0, 1): the design bound.
        dtype: Dtype of the iteration: float32 or float64. None takes that of M, at least float32;
            half precision cannot hold the squares.

    Accuracy: within 1e-4 for singular values in [lower, 1], plus rounding: in float32 1e-3 of the
    whole when they reach down to 1e-3, a tenth when they reach down to 1e-4. Below `lower` the
    power falls behind and becomes linear in sigma; a negative one rises to (lower / 3)^p. A search
    finds nothing longer, and 1.013 for the polar factor (p = 0) in float32. TF32 products are
    too coarse: a factorisation that fails makes its matrix NaN. A zero matrix maps to zero, NaN or
    Inf anywhere makes that matrix NaN and no other.

    Raises:
        TypeError: If M is not a real floating-point tensor.
        ValueError: If M has fewer than two dimensions, an argument is out of range, or `lower` is
            below 1e-4 and the iteration runs in float32.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import RationalPower
        >>> M = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> root = RationalPower(b=4, a=1)  # exponent 1 - 2 / 4
        >>> U = root(M)
        >>> round((U[0, 0] / U[1, 1]).item(), 2)
        2.45
    """

    b: int
    a: int
    lower: float = 1e-3
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.a <= self.b:
            raise ValueError(f"a must lie in [0, b], got a={self.a}, b={self.b}")
        check_dtype(self.dtype)
        rational_steps(self.b, self.lower)

    @property
    def exponent(self) -> float:
        """Return the power 1 - 2 a/b."""
        return 1 - 2 * self.a / self.b

    def __call__(self, M: Tensor) -> Tensor:
        """Return the power of M; see the class."""
        return by_decomposition(M, self.dtype, self._power)

    def _power(self, X: Tensor) -> Tensor:
        if X.dtype == torch.float32 and self.lower < FLOAT32_BOUND:
            raise ValueError(
                f"lower must be >= {FLOAT32_BOUND} in float32, got {self.lower}; pass "
                "dtype=torch.float64"
            )
        X = X / nonzero(frobenius_norm(X))
        first, *rest = rational_steps(self.b, self.lower)
        half = self.b // 2
        # First step on X itself, so that small singular values are squared only afterwards.
        C = _step_matrix(X.mT @ X, *first)  # [..., n, n], W of the first step
        Y = X @ torch.linalg.matrix_power(C, half)  # [..., m, n]
        A = Y.mT @ Y  # [..., n, n], towards I
        for step in rest:
            W = _step_matrix(A, *step)  # [..., n, n]
            root = torch.linalg.matrix_power(W, half)
            # A <- W^(b/2) A W^(b/2),  C <- W C, towards (X'X)^(-1/b).
            A, C = _symmetric(root @ A @ root), _symmetric(W @ C)
        power: Tensor = X @ torch.linalg.matrix_power(C, self.a)
        return power

    def __str__(self) -> str:
        steps = len(rational_steps(self.b, self.lower))
        return f"sigma^{self.exponent:.3g}, {steps} rational steps"


def _step_matrix(A: Tensor, alpha: float, beta: float, gamma: float) -> Tensor:
    """Return (alpha I + beta A) (I + gamma A)^-1 of a Gram matrix A, by one inverse."""
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    factor, info = torch.linalg.cholesky_ex(identity + gamma * A)
    inverse = torch.cholesky_inverse(torch.where((info == 0)[..., None, None], factor, torch.nan))
    return beta / gamma * identity + (alpha - beta / gamma) * _symmetric(inverse)


def _symmetric(A: Tensor) -> Tensor:
    return (A + A.mT) / 2


@lru_cache_eager
def rational_steps(b: int, lower: float) -> tuple[RationalStep, ...]:
    """Return the best [1/1] steps for (X'X)^(-1/b) when the singular values of X lie in [lower, 1].

    Each step is the best one for the interval that the steps before it have left.

    Raises:
        ValueError: If b is not even and positive, or lower not in (0, 1).
    """
    if b < 2 or b % 2:
        raise ValueError(f"b must be even and at least 2, got {b}")
    if not 0 < lower < 1:
        raise ValueError(f"lower must lie in (0, 1), got {lower}")
    low = lower**2
    steps: list[RationalStep] = []
    while not steps or low < 1 - CONVERGED:
        alpha, beta, gamma = step = best_step(b, low)
        low *= ((alpha + beta * low) / (1 + gamma * low)) ** b
        steps.append(step)
    return tuple(steps)


def best_step(b: int, low: float) -> RationalStep:
    """Return the step whose g(x) = x W(x)^b comes closest to a constant on [low, 1], with W(1) = 1.

    The optimum alternates and is symmetric under x -> low / x, which leaves one unknown t, with
    beta/alpha = 1 / (r t), gamma = t / r, r = sqrt(low); bisection makes g's inner maximum g(1).
    """
    if low > 1 - 1e-6:  # the limit: three derivatives of g vanish at 1
        return (b + 1) / (b - 1), 1.0, (b + 1) / (b - 1)
    r = sqrt(low)

    def lead_of_the_end(t: float) -> float:
        p, gamma = 1 / (r * t), t / r
        middle = b * (gamma - p) - p - gamma
        inner = 2 / (middle + sqrt(max(middle**2 - 4 * p * gamma, 0.0)))
        return _log_g(1.0, b, p, gamma) - _log_g(inner, b, p, gamma)

    near = far = (b + 1) / (b - 1)
    while lead_of_the_end(far) >= 0:
        near, far = far, 2 * far
    for _ in range(200):
        t = exp((log(near) + log(far)) / 2)
        near, far = (t, far) if lead_of_the_end(t) > 0 else (near, t)
    p, gamma = 1 / (r * near), near / r
    alpha = (1 + gamma) / (1 + p)
    return alpha, alpha * p, gamma


def _log_g(x: float, b: int, p: float, gamma: float) -> float:
    return log(x) + b * (log(1 + p * x) - log(1 + gamma * x))
