"""Rational iterations on singular values: x -> g x + sum_j w_j x / (x^2 + s_j), step by step.

On a tall matrix each term is one resolvent X (X'X + s I)^-1, by whichever form is stable:

    s < 1/100    QR of [X; sqrt(s) I] = [Q1; Q2] R, which gives Q1 Q2' / sqrt(s)
    otherwise    Cholesky of X'X + s I, whose condition is at most 101 for |X| <= 1

Matrices longer than wide by more than about a quarter are reduced to their triangular factor first.

Rounding leaves noise of an epsilon or two in null directions, and a step that is steep enough for
the least singular values lifts it too. The first step's own QR shows it: I - Q2 Q2' = X'X (X'X +
s I)^-1 =: E is about x^2 / s at x, so that with t = E at the cut-off c

    P = (1 + t) E (E + t I)^-1 = x^2 / (x^2 + c^2),        X_1 <- X_1 P^2

leaves of a direction at c / 8 one part in 4000, and almost all of one above c, which the later
steps bring to 1 all the same: a matrix of rank r has a polar factor of rank r. The steps are
made for singular values from c on: for less they would lift the noise again.

Source: Nakatsukasa, Bai, Gygi (2010), SIAM J. Matrix Anal. Appl. 31, 2700.
Deviations: the cut-off; a failed Cholesky factorisation gives NaN in its own matrix, without a look
at it on the host; a cubic Newton-Schulz step ends every iteration. The terms of a step run one
after another.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.band import Band, coarser, exact_band, vector_loss
from polarlight.linalg.cost import iteration_count
from polarlight.linalg.decomposition import DecompositionPolar, computing_dtype
from polarlight.linalg.lru_cache_eager import (
    assume_constant,
    constant_size,
    lru_cache_eager,
)
from polarlight.linalg.matrices import frobenius_norm, nonzero
from polarlight.linalg.products import multiply_add

CHOLESKY_FROM = 0.01
"""Least shift for the Cholesky form (the source's c <= 100)."""


VISIBLE = 50.0
"""Least value of E at the cut-off, in epsilons, that rounding leaves visible."""


@dataclass(frozen=True, slots=True)
class RationalStep:
    """x -> linear x + sum of weight x / (x^2 + shift) over the terms (weight, shift)."""

    linear: float
    terms: tuple[tuple[float, float], ...]

    def __call__(self, x: float) -> float:
        """Return the value at a singular value x."""
        return x * (self.linear + sum(weight / (x * x + shift) for weight, shift in self.terms))


def polished(x: float) -> float:
    """Apply the cubic Newton-Schulz step, which squares an error that is left."""
    return x * (1.5 - 0.5 * x * x)


def check_lower(lower: float | None) -> None:
    """Raise ValueError unless a design bound is None or can be designed for in float64."""
    if lower is not None and not 1e-20 <= lower < 1:
        raise ValueError(f"lower must lie in [1e-20, 1), got {lower}")


def cut_off(m: int, n: int, dtype: torch.dtype) -> float:
    """Return the singular value, relative to |X|_F, below which a direction is taken as noise."""
    return max(8.0, math.sqrt(max(m, n))) * torch.finfo(dtype).eps


class RationalPolar(DecompositionPolar):
    """Polar map by rational steps on singular values above the cut-off.

    Attributes:
        lower: Least singular value, relative to |M|_F, that arrives at 1; None: the cut-off.
    """

    __slots__ = ()
    lower: float | None

    @abstractmethod
    def plan(self, dtype: torch.dtype, cutoff: float = 0.0) -> tuple[RationalStep, ...]:
        """Return the steps of a computation in float32 or float64.

        Nothing below the `cutoff` is lifted: steps for less would lift the noise again.
        """

    def _polar(self, X: Tensor) -> Tensor:
        """Return the polar factor of tall or square X by the steps of the plan."""
        m, n = (constant_size(side) for side in X.shape[-2:])
        return iterate(X, self.plan(X.dtype, cut_off(m, n, X.dtype)))

    def band(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> Band:
        """Return the values of the steps from `lower`, and twice the cut-off, on."""
        own = self.dtype or computing_dtype(dtype)
        above = max(self.lower or 0.0, 2 * cut_off(m, n, own))
        loss = (
            1
            - least_value(self.plan(own, cut_off(m, n, own)), above)
            + vector_loss(torch.finfo(own).eps, above)
        )
        return exact_band(coarser(own, dtype), above, 2.0, loss)


@lru_cache_eager
def least_value(steps: tuple[RationalStep, ...], lowest: float, points: int = 2000) -> float:
    """Return the least singular value that the steps and the polish make of [lowest, 1]."""
    values = []
    for i in range(points + 1):
        x = lowest ** (i / points)
        for step in steps:
            x = step(x)
        values.append(polished(x))
    return min(values)


def noise_shift(step: RationalStep, cutoff: float, dtype: torch.dtype) -> float | None:
    """Return the shift whose QR gives the directions below the cut-off.

    It is the least one above the cut-off. None if E at the cut-off is lost in rounding, which means
    that the step is not steep either and lifts little noise.
    """
    shifts = [s for _, s in step.terms if cutoff**2 <= s < CHOLESKY_FROM]
    least = min(shifts, default=1.0)
    return least if cutoff**2 / least >= VISIBLE * torch.finfo(dtype).eps else None


def iterate(X: Tensor, steps: Sequence[RationalStep]) -> Tensor:
    """Map the singular values x |X|_F of tall X by the steps at x, without noise, and polish."""
    X = X / nonzero(frobenius_norm(X))
    m, n = X.shape[-2:]
    terms = tuple(step.terms for step in steps)
    long = m > n and _reduces(constant_size(m), constant_size(n), terms)
    run = _run_reduced if long else _run
    return run(X, steps, cut_off(m, n, X.dtype))


@assume_constant
@lru_cache_eager
def _reduces(m: int, n: int, terms: tuple[tuple[tuple[float, float], ...], ...]) -> bool:
    """Return True if steps of these terms cost less on the triangular factor, itself included."""
    steps = tuple(RationalStep(0.0, of_step) for of_step in terms)
    direct, reduced = (iteration_count(run, m, n, steps, 0.0) for run in (_run, _run_reduced))
    return reduced.flops < direct.flops


def _run_reduced(X: Tensor, steps: Sequence[RationalStep], cutoff: float) -> Tensor:
    Q, R = torch.linalg.qr(X)  # [..., m, n], [..., n, n]
    reduced: Tensor = Q @ _run(R, steps, cutoff)
    return reduced


def _run(X: Tensor, steps: Sequence[RationalStep], cutoff: float) -> Tensor:
    for i, step in enumerate(steps):
        X = _step(X, step, 0.0 if i else cutoff)
    return multiply_add(X, X, X.mT @ X, 1.5, -0.5)


def _step(X: Tensor, step: RationalStep, cutoff: float = 0.0) -> Tensor:
    result = step.linear * X
    by_cholesky = [term for term in step.terms if term[1] >= CHOLESKY_FROM]
    noisy = noise_shift(step, cutoff, X.dtype)
    seen = None
    for weight, shift in step.terms:
        if shift < CHOLESKY_FROM:
            Q1, Q2 = _stacked_qr(X, shift)
            result = multiply_add(result, Q1, Q2.mT, 1.0, weight / shift**0.5)
            if shift == noisy:
                seen = Q2
    if by_cholesky:
        R = X.mT @ X
        for weight, shift in by_cholesky:
            result = result + weight * resolvent(X, R, shift)
    if seen is None or noisy is None:
        return result
    return _cut(result, seen, cutoff**2 / (cutoff**2 + noisy))


def _cut(X: Tensor, Q2: Tensor, threshold: float) -> Tensor:
    """Return X P^2 with P = (1 + t) (I - t (E + t I)^-1) and E = I - Q2 Q2', [..., m, n]."""
    E = -(Q2 @ Q2.mT)
    E.diagonal(dim1=-2, dim2=-1).add_(1.0)
    for _ in range(2):
        X = X - threshold * resolvent(X, E, threshold)
    return X * (1 + threshold) ** 2


def _stacked_qr(X: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """Return both blocks of the orthonormal factor of [X; sqrt(shift) I]."""
    m, n = X.shape[-2:]
    unit = torch.eye(n, dtype=X.dtype, device=X.device).expand(*X.shape[:-2], n, n)
    Q = torch.linalg.qr(torch.cat([X, shift**0.5 * unit], dim=-2)).Q
    return Q[..., :m, :], Q[..., m:, :]


def resolvent(X: Tensor, R: Tensor, shift: float) -> Tensor:
    """Return X (R + shift I)^-1 for R = X'X; NaN for the matrices whose factorisation fails."""
    shifted = R.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(shift)
    L, info = torch.linalg.cholesky_ex(shifted)
    L = torch.where((info == 0)[..., None, None], L, torch.nan)
    return torch.cholesky_solve(X.mT, L).mT
