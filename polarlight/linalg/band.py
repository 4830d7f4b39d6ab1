"""Bands: between which numbers the singular values lie that an engine puts out.

The upper end holds for every input. The lower end holds for singular values of the input that are
not small: a polynomial iteration lifts what is near zero only part of the way, and an exact engine
takes what is near its cut-off for noise.

A schedule maps s / |M| to f(s / |M|). Rounding to a dtype moves singular values by up to half an
epsilon of |M| before the first step. Each step, a X + X (b R + c R^2) with R = X'X, rounds its
result by half an epsilon of the largest singular value, and the bracket by half an epsilon of its
norm, which moves a singular value by that fraction of itself. The lower end follows both through
the steps: a polynomial that falls near zero between its ends, as CANS's first does, has none in
bfloat16. What else rounding does is allowed for by ROUNDING, twice what a search finds
(`docs/accuracy.md`).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.coefficients import Schedule
from polarlight.linalg.lru_cache_eager import lru_cache_eager
from polarlight.linalg.normalisation import Normalisation

REACH = 1e-2
"""The least singular value, over the norm, that a schedule is held to."""

ROUNDING = {
    torch.bfloat16: (0.01, 0.08),
    torch.float16: (0.002, 0.008),
    torch.float32: (1e-4, 1e-3),
    torch.float64: (1e-7, 1e-6),
}
"""Distances below and above a schedule's own values that are allowed in each dtype."""

GRAM_ROUNDING = ROUNDING | {
    torch.bfloat16: (0.02, 0.08),
    torch.float16: (0.01, 0.04),
    torch.float32: (1e-3, 2e-3),
}
"""The same for the Gram form with its derived restarts."""

EXACT_ROUNDING = 60
"""Distance from 1 that is allowed to exact engines, in epsilons: twice what a search finds."""


@dataclass(frozen=True, slots=True)
class Band:
    """Singular values that come out of an engine, for every finite matrix of a shape.

    Attributes:
        low: If j singular values of the input are at least `above` times its norm, the j-th largest
            that comes out is at least this; 0 where nothing is promised.
        high: No singular value that comes out is larger.
        above: The least singular value, over the norm, to which `low` applies.
        order: Of the Schatten norm meant: 2 for Frobenius, infinite for the largest singular value.
    """

    low: float
    high: float
    above: float
    order: float = 2.0

    def __str__(self) -> str:
        """Return the interval and what it holds for."""
        names = {2.0: "Frobenius", math.inf: "spectral"}
        norm = names.get(self.order, f"Schatten-{self.order:g}")
        return f"{self.low:.4f} .. {self.high:.4f} above {self.above:.2g} ({norm})"


def coarser(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """Return the dtype with the larger epsilon: an output is rounded to the dtype of the input."""
    return max(one, other, key=lambda dtype: torch.finfo(dtype).eps)


def iteration_band(
    schedule: Schedule,
    normalisation: Normalisation,
    dtype: torch.dtype,
    rounding: tuple[float, float],
) -> Band:
    """Return the band of an iteration in `dtype`; no lower end where columns are divided apart."""
    below, over = rounding
    high = extremes(schedule, 1e-7)[1] + over
    if not normalisation.scalar:
        return Band(0.0, high, 1.0)
    eps = torch.finfo(dtype).eps
    low = max(least_rounded(schedule, eps) - below, 0.0)
    return Band(low, high, REACH + eps / 2, normalisation.order)


def vector_loss(eps: float, above: float) -> float:
    """Return what exact engines may take from singular values down to `above`, over the norm.

    Singular vectors of s are rounded by up to 2 eps / s, and where a row or column is zero that
    part is taken away.
    """
    return (2 * eps / above) ** 2 / 2


def exact_band(
    dtype: torch.dtype,
    above: float,
    order: float,
    loss: float = 0.0,
    epsilons: float = EXACT_ROUNDING,
) -> Band:
    """Return the band of an exact engine in `dtype`: 1, less a known loss, and some epsilons."""
    rounding = epsilons * torch.finfo(dtype).eps
    return Band(max(1 - loss - rounding, 0.0), 1 + rounding, above, order)


@lru_cache_eager
def extremes(schedule: Schedule, lowest: float) -> tuple[float, float]:
    """Return the least and the largest value of a schedule on [lowest, 1]; runs on the host."""
    sigma = _logspace(lowest, 1.0) / schedule.safety
    for a, b, c in schedule.steps:
        sigma = sigma * (a + sigma**2 * (b + sigma**2 * c))
    return float(sigma.min()), float(sigma.max())


@lru_cache_eager
def least_rounded(schedule: Schedule, eps: float) -> float:
    """Return the least value on [REACH, 1] if every product is rounded by eps / 2."""
    low, high = REACH / schedule.safety, 1 / schedule.safety
    for a, b, c in schedule.steps:
        sigma = _logspace(low, high)
        bracket = sigma**2 * (b + sigma**2 * c)
        result = sigma * (a + bracket)
        moved = eps / 2 * result.abs().max()
        high = float(result.max() + moved)
        low = float((result - eps / 2 * sigma * bracket.abs().max()).min() - moved)
        if low <= 0:
            return 0.0
    return low


def _logspace(low: float, high: float, points: int = 100_000) -> Tensor:
    ends = math.log10(low), math.log10(high)
    return torch.logspace(*ends, points, dtype=torch.float64, device="cpu")
