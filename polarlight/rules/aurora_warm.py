"""Aurora with a row scale that is kept between steps, so that one polar factor per step is enough.

    U = polar(D M),   D_i <- D_i ((n/m) / |U_i|^2)^exponent   for the next step

The momentum changes slowly, and with it the scale that levels its rows: what the release's
iteration finds anew in every step, this one goes on refining.

Source: ours; the iteration is the release's (Tilde Research, 2026), one round per step.
Deviations: nothing published to deviate from. D stays within a factor of `reach` of 1 / |M_i|, so
that a row which falls silent and wakes again does not meet a scale from long ago.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.matrices import nonzero, unit_scale
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.rows import (
    check_floor,
    inverse_row_norms,
    rms_row_norm,
    row_norms,
    row_significance,
)
from polarlight.rule import Buffers, MatrixMap
from polarlight.rules.aurora import check_exponent, correction
from polarlight.stages.equilibrate import RELATIVE_FLOOR


@dataclass(frozen=True, slots=True)
class WarmPolar:
    """Balanced polar factor with a remembered row scale. For `Aurora(solver=WarmPolar())`.

    Shapes: tall [..., m, n] -> [..., m, n]. State: `row_scale` [..., m, 1], for M of unit rms row
        norm.

    Args:
        polar: The polar method; one call per step.
        exponent: Power of the correction, in (0, 1]; None takes 1/(2 (1 - n/m)), at most 1.
        reach: Largest ratio between the kept scale and the inverse row norm, either way; above 1.
        floor: Rows below this fraction of the rms row norm are noise and are not lifted to a full
            row.

    Raises:
        ValueError: If an argument is outside the range above.
    """

    polar: MatrixMap = NewtonSchulz(polar_express(6))
    exponent: float | None = 0.5
    reach: float = 10.0
    floor: float = RELATIVE_FLOOR

    def __post_init__(self) -> None:
        check_exponent(self.exponent)
        check_floor(self.floor)
        if not self.reach > 1:
            raise ValueError(f"reach must be > 1, got {self.reach}")

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """One scale per row."""
        return {"row_scale": torch.Size((*shape[:-1], 1))}

    def __call__(self, M: Tensor, buffers: Buffers) -> Tensor:
        """The balanced polar factor of M; keeps the scale for the next step."""
        kept = buffers["row_scale"]
        X = unit_scale(M)
        X = X / nonzero(rms_row_norm(row_norms(X)))
        weight = row_significance(X, self.floor).square()
        fresh = inverse_row_norms(X, self.floor)
        D = torch.where(kept == 0, fresh, kept.clamp(fresh / self.reach, fresh * self.reach))
        U = self.polar(D * X)
        following = D * correction(U, weight, self.exponent)
        size = rms_row_norm(row_norms(following * X))
        kept.copy_(torch.where(size == 0, kept, following / nonzero(size)))
        return U.to(M.dtype)

    def __str__(self) -> str:
        return f"rows balanced, scale kept, {self.polar}"
