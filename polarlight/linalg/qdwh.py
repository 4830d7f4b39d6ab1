"""QDWH: the polar factor by dynamically weighted Halley steps, in three to five of them.

    X <- X (a I + b X'X) (I + c X'X)^-1,        X_0 = M / |M|_F

The weights are the best ones for singular values in [l, 1], where l, the least that is provided
for, grows from step to step by a known formula; the number of steps is thus known before the first.

Source: Nakatsukasa, Bai, Gygi (2010), SIAM J. Matrix Anal. Appl. 31, 2700.
Deviations: the bound on the largest singular value is |M|_F. The usual (|M|_1 |M|_inf)^(1/2) is
about as loose and depends on the basis, so that an unconverged step would not commute with
rotations. l_0 is given, not estimated, and steps are counted, not tested for: nothing waits for the
device. A cubic Newton-Schulz step follows the last.
"""

from dataclasses import dataclass

import torch

from polarlight.linalg.decomposition import check_dtype
from polarlight.linalg.lru_cache_eager import constant_fraction, constant_size, lru_cache_eager
from polarlight.linalg.rational import (
    RationalPolar,
    RationalStep,
    check_lower,
    polished,
)
from polarlight.registry import registered


@registered("QDWH")
@dataclass(frozen=True, slots=True)
class QDWH(RationalPolar):
    """Polar factor of each matrix in a batch, by QR and Cholesky factorisations.

    Shapes: [..., m, n] -> [..., m, n] in the dtype of M; leading dimensions are independent.
    Cost: first steps by QR, the rest by Cholesky; see `linalg.rational`. Square and with the
    default bound: about 37 k^3 flops in float32, 41 k^3 in float64.

    Args:
        lower: The least singular value, relative to |M|_F, that is to arrive at 1; in [1e-20, 1).
            None, and anything less, takes the cut-off below.
        steps: Number of Halley steps. None takes the fewest that bring `lower` to within an epsilon
            of 1: 4 in float32 and 5 in float64 for the default bound, 3 from 1e-3 in float32.
        dtype: Dtype of the computation: float32 or float64. None takes that of M, at least float32.

    Accuracy: singular values above `lower`, and above the cut-off of max(8, sqrt(max(m, n)))
    epsilons of |M|_F, arrive within a few epsilons of 1; with 3 float32 steps within 1e-4 of it.
    `band` holds from twice the cut-off on: a row of zeros may take (2 eps / s)^2 / 2 of a
    direction. Those below `lower` arrive between 0 and 1, in order. Those below the cut-off are
    rounding noise and fall towards 0: a quarter of the cut-off comes out below 0.03, an eighth
    below 1e-3, so that a matrix of rank r has a polar factor of rank r. A `lower` above 1e-5 in
    float32, 1e-13 in float64, needs no cut-off: noise arrives at up to ten epsilons / lower. Zero
    rows and columns stay exactly zero. NaN or Inf anywhere makes that matrix NaN and no other.

    Raises:
        TypeError: If M is not a real floating-point tensor.
        ValueError: If M has fewer than two dimensions, or an argument is outside its range.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import QDWH
        >>> M = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> torch.linalg.svdvals(QDWH()(M)).round(decimals=4)
        tensor([1., 1.])
    """

    lower: float | None = None
    steps: int | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_lower(self.lower)
        check_dtype(self.dtype)
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")

    def plan(self, dtype: torch.dtype, cutoff: float = 0.0) -> tuple[RationalStep, ...]:
        """Return the steps of a computation in float32 or float64.

        Nothing below the `cutoff` is lifted: steps for less would lift the noise again.
        """
        eps = torch.finfo(dtype).eps
        lower = eps if self.lower is None else constant_fraction(self.lower)
        steps = None if self.steps is None else constant_size(self.steps)
        return halley(max(lower, eps, cutoff), steps, eps)

    def __str__(self) -> str:
        steps = "" if self.steps is None else f" x{self.steps}"
        return f"QDWH{steps}" if self.lower is None else f"QDWH{steps} from {self.lower:g}"


@lru_cache_eager
def halley(lower: float, steps: int | None, accuracy: float) -> tuple[RationalStep, ...]:
    """`steps` weighted Halley steps for [lower, 1], or as many as the polish needs."""
    plan: list[RationalStep] = []
    while len(plan) != steps:
        if steps is None and 1 - polished(lower) <= accuracy:
            break
        step = _halley_step(lower)
        plan.append(step)
        lower = min(step(lower), 1.0)
    return tuple(plan)


def _halley_step(lower: float) -> RationalStep:
    """The step x (a + b x^2) / (1 + c x^2), as b/c x + (a - b/c) / c x / (x^2 + 1/c)."""
    squared = lower * lower
    d = (4 * (1 - squared) / squared**2) ** (1 / 3)
    root = (1 + d) ** 0.5
    a = root + (2 - d + 2 * (2 - squared) / (squared * root)) ** 0.5
    b = (a - 1) ** 2 / 4
    c = a + b - 1
    return RationalStep(b / c, (((a - b / c) / c, 1 / c),))
