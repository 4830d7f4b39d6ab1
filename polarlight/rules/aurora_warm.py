"""Aurora with a row scale that is kept between steps, so that one polar factor per step is enough.

    D_i <- D_i (|M_i before| / |M_i|)^follow,   U = polar(D M)
    D_i <- D_i ((n/m) / |U_i|^2)^exponent   for the next step

The momentum changes slowly, and with it the scale that levels its rows: what the release's
iteration finds anew in every step, this one goes on refining. A row that has just grown is mostly
noise: a fifth of the change, followed at once, leaves the rows most even (`docs/log.md`).

Source: ours; the iteration is the release's (Tilde Research, 2026), one round per step.
Deviations: nothing published to deviate from. D stays within a factor of `reach` of 1 / |M_i|, so
that a row which falls silent and wakes again does not meet a scale from long ago.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.matrices import nonzero, unit_scale_in
from polarlight.linalg.row_sums import ALL_ROWS, ORDINARY, Rows
from polarlight.linalg.rows import (
    check_exponent,
    check_floor,
    leverage_correction,
    rms_row_norm,
    row_norms,
    significance,
)
from polarlight.linalg.slot import Buffers, MatrixMap
from polarlight.registry import registered
from polarlight.stages.equilibrate import RELATIVE_FLOOR
from polarlight.stages.row_scale import KeptRowScale, keep_scale, moved_scale


@registered(
    "WarmPolar", stateful=True, may_differ=("polar", "exponent", "follow", "reach", "floor")
)
@dataclass(frozen=True, slots=True)
class WarmPolar(KeptRowScale):
    """Balanced polar factor with a remembered row scale. For `Aurora(solver=WarmPolar())`.

    Shapes: tall [..., m, n] -> [..., m, n]. State, [..., m, 1] each, for M of unit rms row norm:
        `row_scale`, and the `row_size` (row norms) that it was found for.

    Args:
        polar: The polar method; one call per step.
        exponent: Power of the correction, in (0, 1]; None takes 1/(2 (1 - n/m)), at most 1.
        follow: Which power of a row norm's change is divided out at once, in [0, 1]; 0 leaves all
            of it to the next correction, 1 starts from equal rows as the release does.
        reach: Largest ratio between the kept scale and the inverse row norm, either way; above 1.
        floor: Rows below this fraction of the rms row norm are noise and are not lifted to a full
            row.

    Raises:
        ValueError: If an argument is outside the range above.
    """

    polar: MatrixMap = AutoPolar()
    exponent: float | None = 0.5
    follow: float = 0.2
    reach: float = 10.0
    floor: float = RELATIVE_FLOOR

    def __post_init__(self) -> None:
        check_exponent(self.exponent)
        check_floor(self.floor)
        if not 0 <= self.follow <= 1:
            raise ValueError(f"follow must lie in [0, 1], got {self.follow}")
        if not self.reach > 1:
            raise ValueError(f"reach must be > 1, got {self.reach}")

    def __call__(self, M: Tensor, buffers: Buffers) -> Tensor:
        """The balanced polar factor of M; keeps scale and sizes for the next step."""
        return self._on_rows(M, ALL_ROWS, buffers)

    def _on_rows(self, M: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
        """The same on a part of the rows."""
        dtype = self.input_dtype(torch.promote_types(M.dtype, torch.float32), M.device)
        return self.apply_prescaled(unit_scale_in(M, dtype, rows), buffers, rows).to(M.dtype)

    def apply_prescaled(self, X: Tensor, buffers: Buffers, rows: Rows = ALL_ROWS) -> Tensor:
        """Return the factor of an X at unit scale; overwrites X, updates the row scale."""
        norms = row_norms(X)
        rms = nonzero(rms_row_norm(norms, rows))
        size = norms / rms
        weight = significance(size, self.floor, rows).square()
        limits = {"follow": self.follow, "reach": self.reach, "floor": self.floor}
        D = moved_scale(size, buffers, rows, **limits)
        bounded = self.reach <= max(ORDINARY)  # the largest row norm of D M
        polar = self.polar.call_prescaled if bounded else self.polar.on_rows
        U = polar(X.mul_((D / rms).to(X.dtype)), rows)
        D = D * leverage_correction(U, weight, self.exponent, rows)
        keep_scale(D, size, buffers, rows)
        return U

    def __str__(self) -> str:
        return f"rows balanced, scale kept, {self.polar}"
