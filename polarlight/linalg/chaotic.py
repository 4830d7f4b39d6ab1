"""Steep quintics that never converge: singular values are lifted fast and land anywhere in [0, 1].

    Kaon:            s <- 4.1 s (1 - s^2)^2,  five times, then divided by 1.175
    maximal slope:   s <- K s (1 - z s^2)^2,  five times, K = 4.2572, z = 1.4847

The second is the steepest odd quintic that maps [0, 1] into itself: it touches 1 once, ends at
p(1) = 1, and a steeper one would differ from it by a quintic with too many zeros. Kaon's is of the
same shape a little below that bound. Neither changes a sign; both are chaotic: on average an error
grows by e^0.9 (Kaon) and e^1.1 per step.

Source: Kaon (2026), arXiv 2605.11181; the maximal slope by the argument above.
Deviations: the norm is enlarged by 1.021. At norm 1 exactly, Kaon's first step sends a matrix of
rank one to zero, and the other map rests on a fixed point from which rounding escapes upwards. With
1.021 rank one arrives at the top of the last bump in both, at 0.999 and 0.990, where a rounding of
the norm is felt least. Kaon's code iterates in bfloat16.
"""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from polarlight.linalg.band import Band
from polarlight.linalg.coefficients import Quintic, Schedule
from polarlight.linalg.matrices import at_least_float32, check_matrix
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import Frobenius
from polarlight.linalg.slot import MatrixMap, SpectralFunction
from polarlight.registry import registered

EXCESS = 0.012
"""Distance above 1 that rounding may lift a singular value: twice what a search finds."""

SAFETY = 1.021
"""Factor that enlarges the norm; also absorbs a norm above 1 by rounding."""


def squared_bump(slope: float, z: float) -> Quintic:
    """The quintic slope s (1 - z s^2)^2 as (a, b, c)."""
    return slope, -2 * slope * z, slope * z**2


def steepest_bump() -> Quintic:
    """The bump K s (1 - z s^2)^2 whose maximum, 16 K / (25 sqrt(5 z)), and whose end p(1) are 1."""
    low, high = 1.0, 2.0
    for _ in range(100):
        z = (low + high) / 2
        low, high = (z, high) if 16 / 25 / sqrt(5 * z) > (z - 1) ** 2 else (low, z)
    return squared_bump(1 / (low - 1) ** 2, low)


KAON = Schedule(
    name="kaon x5",
    steps=((squared_bump(4.1, 1.0),) * 4) + (squared_bump(4.1 / 1.175, 1.0),),
    safety=SAFETY,
    source="Kaon (2026), arXiv 2605.11181",
)
"""Slope 966, values in [0, 0.999], their root mean square about 0.6."""

MAXIMAL_SLOPE = Schedule(
    name="maximal slope x5",
    steps=(steepest_bump(),) * 5,
    safety=SAFETY,
    source="the odd quintic of largest slope at 0 with values in [0, 1] on [0, 1]",
)
"""Slope 1370, values in [0, 1], their root mean square about 0.6."""


@registered("Chaotic")
@dataclass(frozen=True, slots=True)
class Chaotic(SpectralFunction, MatrixMap):
    """Singular values of M / (1.021 |M|_F) by a chaotic schedule, [..., m, n] -> [..., m, n].

    Args:
        schedule: `KAON` or `MAXIMAL_SLOPE`.

    Accuracy: runs in float32, or float64 for float64 input. Five steps amplify a rounding by up to
    the slope, 1e3. Float32 results of Gaussian matrices are within 1e-4 (`KAON`) and 2e-3
    (`MAXIMAL_SLOPE`) of float64's; that is how far two devices may differ. In bfloat16 no digit
    would agree, so it is not offered. No singular value is above 1.006 (searched). A zero matrix
    maps to zero, NaN or Inf anywhere makes that matrix NaN and no other.

    Raises:
        TypeError: If M is not a real floating-point tensor.
        ValueError: If M has fewer than two dimensions.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import Chaotic
        >>> M = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> bool(torch.linalg.matrix_norm(Chaotic()(M), 2) < 1.01)
        True
    """

    schedule: Schedule = KAON

    def __call__(self, M: Tensor) -> Tensor:
        """Return the image of M; see the class."""
        check_matrix(M)
        dtype = at_least_float32(M[..., :1, :1]).dtype
        # Explicit: torch.compile traces the making of an object, but not one that is a default.
        return NewtonSchulz(self.schedule, dtype, Frobenius())(M)

    def band(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> Band:
        """Return an upper end only: singular values land anywhere below it."""
        return Band(0.0, 1 + EXCESS, 1.0)

    def repeatable(self, m: int, n: int) -> bool:
        """Return False: two roundings of one matrix have two images."""
        return False

    def __str__(self) -> str:
        return f"chaotic, {self.schedule.name}"
