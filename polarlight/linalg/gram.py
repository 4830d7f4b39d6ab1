"""Newton-Schulz on the Gram matrix: long matrices are touched a few times, not twice per step.

With R = X'X and P = aI + bR + cR^2, a step is X <- X P and R <- P R P. Steps are gathered in the
small factor Q <- Q P, and X <- X Q is formed once per segment, from which R is taken anew:

    Z = bR + cR^2,   Q <- Q Z + a Q,   R <- Z (RZ + aR) + a (RZ + aR)

Rounding gives R eigenvalues slightly below zero, which a step of slope a multiplies by a^2 instead
of bounding; and Q, rounded relative to its largest eigenvalue, drowns what it shrinks. A segment
may therefore only run while the condition of Q stays below CONDITION and an eigenvalue of
-PERTURBATION eps is amplified about as much as one of 0: at most GROWTH eps more. Nor may the error
of R, of an epsilon, grow above NOISE by the squared slopes of the steps that R goes through: large
singular values leave the interval of the next step then, and end anywhere. What the last segment
does is passed on to no step: it may add LAST_NOISE. `restart_positions` finds the fewest restarts
with these properties from the schedule itself. In float16 at condition 1e3 the result then errs
about as much as that of the plain form; without a restart Polar Express is lost there.

Source: Zhang, Amsel, Chen, Dao, "Gram Newton-Schulz" (2026),
dao-lab.ai/blog/2026/gram-newton-schulz.
Deviations: restarts are derived, not tuned by hand. P is never formed, and neither is Q in a
segment of one step; the identity enters only the first Q of a longer segment. (Keeping it apart as
a number looks better and measures worse: Q ends near 1, a difference of two large numbers then.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from polarlight.linalg.band import GRAM_ROUNDING, Band, coarser, iteration_band
from polarlight.linalg.coefficients import Quintic, Schedule
from polarlight.linalg.iterated import IteratedPolar
from polarlight.linalg.lru_cache_eager import assume_constant, lru_cache_eager
from polarlight.linalg.normalisation import Start
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.precision import gram_dtype
from polarlight.linalg.products import (
    gram_polynomial,
    is_tall,
    symmetric_multiply_add,
    times_short,
)
from polarlight.linalg.row_sums import ALL_ROWS, Rows
from polarlight.registry import registered

NO_END = (math.inf, math.inf)
"""Rounding that leaves a band without ends."""

CONDITION = 200.0
"""Largest condition of an accumulated factor in float16 (0.2 / eps) and wider."""

GROWTH = 512.0
"""Bound on the amplification of a perturbed eigenvalue over that of 0, in epsilons; below 0.5."""

PERTURBATION = 0.41
"""The least eigenvalue of a rounded Gram matrix, in negative machine epsilons: -4e-4 in float16."""

NOISE = 0.016
"""Bound on the growth of an error of R in a segment, from `tests/linalg/test_bands.py`."""

LAST_NOISE = 0.0625
"""Bound of this growth in the last segment, whose output no other step amplifies."""

HALF_SAFE = polar_express(5, safety=1.02)
"""Twice the usual safety: with 1.01 a search drives three float16 segments from 1.13 to 1.7."""


@registered("GramNewtonSchulz", removed=("tile",))
@dataclass(frozen=True, slots=True)
class GramNewtonSchulz(IteratedPolar):
    """Newton-Schulz for oblong matrices, iterating on the Gram matrix of the short side.

    Shapes: [..., m, n] -> [..., m, n] in the dtype of M; leading dimensions are independent.
    Cost for S segments of T quintics in total: 4 S m n k + 2 (4 T - 3 S) k^3 flops with k = min(m,
    n), against 4 T m n k + 2 T k^3 in the plain form, `NewtonSchulz`: no gain on square matrices,
    with a segment per step, or on sides so short that launches cost more than products. It runs the
    Gram form on all of them; `AutoPolar` takes the cheaper form of its schedule.

    Args:
        schedule: The polynomials; see `linalg.coefficients` and `linalg.polar_express`.
        dtype: Dtype of the iteration. None takes float16 on GPUs that multiply it in hardware,
            float32 elsewhere, and float64 for float64 input. Bfloat16 needs so many restarts that
            little is gained: 25 bounds the condition there.
        normalisation: What the input is divided by; see `linalg.normalisation`.
        restarts: Numbers of steps after which the Gram matrix is taken anew, increasing. None
            derives them by `restart_positions`, 3 segments for the default in float16.

    Accuracy: that of `NewtonSchulz` with this schedule and dtype. An adversarial search
    (`docs/accuracy.md`) finds no singular value above the schedule's largest by more than 0.001 in
    float32, 0.02 in float16 and 0.04 in bfloat16, with the derived restarts; others have no bound:
    two segments of Polar Express in float16 reach 4. `band` states both ends. Up to condition 1e3
    the two forms agree (relative, Frobenius) within 5e-2 in float16, 2e-4 in float32 and 4e-13 in
    float64.

    Raises:
        TypeError: If M is not a real floating-point tensor.
        ValueError: If M has fewer than two dimensions, the schedule needs another normalisation,
            or restarts do not increase between 1 and the number of steps less 1.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import GramNewtonSchulz, polar_express
        >>> M = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> torch.linalg.svdvals(GramNewtonSchulz(polar_express(8))(M)).round(decimals=2)
        tensor([1., 1.])
    """

    schedule: Schedule = HALF_SAFE
    restarts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        IteratedPolar.__post_init__(self)
        bounds = (0, *(self.restarts or ()), len(self.schedule.steps))
        if any(i >= j for i, j in pairwise(bounds)):
            raise ValueError(
                f"restarts must increase within 1 .. {bounds[-1] - 1}, got {self.restarts}"
            )

    def own_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """Return the dtype of the iteration for input of `dtype` on this device."""
        return self.dtype or gram_dtype(dtype, device)

    def _iterate(self, start: Start, dtype: torch.dtype, rows: Rows) -> Tensor:
        for steps in self.segments(dtype):
            start = Start(_segment(start, steps, rows))
        return start.X

    def segments(self, dtype: torch.dtype) -> tuple[tuple[Quintic, ...], ...]:
        """Return the schedule cut at its restarts."""
        steps = self.schedule.steps
        restarts = self.restarts
        if restarts is None:
            restarts = restart_positions(self.schedule, dtype)
        return tuple(steps[i:j] for i, j in pairwise((0, *restarts, len(steps))))

    def band(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> Band:
        """Return the schedule's own, with the rounding of the iteration.

        It holds for restarts that keep to NOISE; others have no upper end.
        """
        own = self.own_dtype(dtype, device)
        rounding = GRAM_ROUNDING[coarser(own, dtype)] if self.keeps_noise(own) else NO_END
        return iteration_band(self.schedule, self.normalisation, own, rounding)

    def keeps_noise(self, dtype: torch.dtype) -> bool:
        """Return whether an error of the Gram matrix stays small in every segment."""
        *first, last = self.segments(dtype)
        within = all(segment_noise(steps, dtype) <= NOISE for steps in first)
        return within and segment_noise(last, dtype) <= LAST_NOISE

    def __str__(self) -> str:
        return f"Gram Newton-Schulz, {self.schedule.name}"


def _segment(start: Start, steps: Sequence[Quintic], rows: Rows) -> Tensor:
    """Return X times the polynomials of one segment, gathered on the short side.

    The steps must meet X in their order, X P1 P2 or P2 P1 X. Q = P1 P2 is symmetric but for
    rounding, and Q' puts it right for a wide X: the other order multiplies the rounding of the
    later steps by what the first one makes of small singular values.
    """
    (a, b, c), *rest = steps
    R = start.first_gram(rows)  # [..., k, k], X'X
    Z = start.first_polynomial(R, b, c)  # [..., k, k], bR + cR^2
    if not rest:
        return start.times_factor(times_short(start.X, Z, a, rows))  # X P
    # Q = P of the first step, the only place where the identity is added.
    Q = Z.clone()
    Q.diagonal(dim1=-2, dim2=-1).add_(a)
    start.times_factor(Q)  # on the short side, which is the smaller one
    start.times_factor(R, 2)
    for following in rest:
        # R <- P R P of the step before, in two products of commuting matrices.
        RZ = symmetric_multiply_add(R, R, Z, a)
        R = symmetric_multiply_add(RZ, Z, RZ, a)
        # Q <- Q P of this step.
        a, b, c = following
        Z = gram_polynomial(R, b, c)
        Q = symmetric_multiply_add(Q, Q, Z, a)
    tall = rows is not ALL_ROWS or is_tall(start.X)
    return times_short(start.X, Q if tall else Q.mT, rows=rows)


@assume_constant
@lru_cache_eager
def restart_positions(schedule: Schedule, dtype: torch.dtype) -> tuple[int, ...]:
    """Return after how many steps the Gram matrix is taken anew in an iteration in `dtype`.

    The fewest restarts for which every segment keeps to CONDITION, GROWTH and NOISE, and among
    those the ones with the least growth. Runs on the host, once per schedule.
    """
    steps = schedule.steps
    best: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]
    for end in range(1, len(steps) + 1):
        options = []
        for start in range(end):
            segment = steps[start:end]
            growth = segment_growth(segment, dtype)
            noise = LAST_NOISE if end == len(steps) else NOISE
            if growth <= growth_limit(dtype) and segment_noise(segment, dtype) <= noise:
                segments, worst, cuts = best[start]
                options.append((segments + 1, max(worst, growth), (*cuts, start)))
        best.append(min(options))
    return best[-1][2][1:]


def condition_limit(dtype: torch.dtype) -> float:
    """Return CONDITION, less in bfloat16: rounding a factor must not reach what it shrinks."""
    return min(CONDITION, 0.2 / torch.finfo(dtype).eps)


def growth_limit(dtype: torch.dtype) -> float:
    """Return GROWTH epsilons, at most a half."""
    return min(0.5, GROWTH * torch.finfo(dtype).eps)


def segment_growth(steps: Sequence[Quintic], dtype: torch.dtype, points: int = 400) -> float:
    """Return the amplification of a Gram eigenvalue rounded below 0 over that of 0, less 1.

    About the relative error of small singular values after the segment. Infinite where the
    condition of the accumulated factor, over all Gram eigenvalues up to 1, exceeds CONDITION; 0 for
    a single step, which accumulates nothing.
    """
    if len(steps) == 1:
        return 0.0
    perturbed = _factor(steps, -PERTURBATION * torch.finfo(dtype).eps)
    factors = [perturbed, *(_factor(steps, (i / points) ** 2) for i in range(points + 1))]
    within = max(factors) <= condition_limit(dtype) * min(factors)
    return perturbed / factors[1] - 1 if within else math.inf


def segment_noise(steps: Sequence[Quintic], dtype: torch.dtype) -> float:
    """Return the size to which an epsilon in R grows up to the segment's last step.

    0 for a single step, for which R is taken from X itself.
    """
    if len(steps) == 1:
        return 0.0
    return math.prod(a * a for a, _, _ in steps[:-1]) * torch.finfo(dtype).eps


def _factor(steps: Sequence[Quintic], r: float) -> float:
    """Return |q(r)|: the product of the polynomials P on the way of a Gram eigenvalue r."""
    q = 1.0
    for a, b, c in steps:
        p = a + r * (b + r * c)
        q, r = q * p, r * p * p
        if abs(q) > 1e30:
            break
    return abs(q)
