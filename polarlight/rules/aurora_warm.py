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
from polarlight.linalg.properties import ROWS, Invariants, Symmetries, Symmetry, rescaled_invariants
from polarlight.linalg.row_sums import ALL_ROWS, ORDINARY, Rows
from polarlight.linalg.rows import (
    check_exponent,
    check_floor,
    inverse,
    leverage_correction,
    rms_row_norm,
    row_norms,
    significance,
)
from polarlight.linalg.slot import Buffers, MatrixMap, Stage, polar_rms
from polarlight.registry import registered
from polarlight.stages.equilibrate import RELATIVE_FLOOR


@registered(
    "WarmPolar", stateful=True, may_differ=("polar", "exponent", "follow", "reach", "floor")
)
@dataclass(frozen=True, slots=True)
class WarmPolar(Stage):
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

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """One scale and one size per row."""
        column = torch.Size((*shape[:-1], 1))
        return {"row_scale": column, "row_size": column}

    def __call__(self, M: Tensor, buffers: Buffers) -> Tensor:
        """The balanced polar factor of M; keeps scale and sizes for the next step."""
        return self._on_rows(M, ALL_ROWS, buffers)

    def _on_rows(self, M: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
        """The same on a part of the rows."""
        dtype = self.input_dtype(torch.promote_types(M.dtype, torch.float32), M.device)
        X = unit_scale_in(M, dtype, rows)
        norms = row_norms(X)
        rms = nonzero(rms_row_norm(norms, rows))
        size = norms / rms
        weight = significance(size, self.floor, rows).square()
        D = self._scale(size, buffers, rows)
        bounded = self.reach <= max(ORDINARY)  # the largest row norm of D M
        polar = self.polar.call_prescaled if bounded else self.polar.on_rows
        U = polar(X.mul_((D / rms).to(X.dtype)), rows)
        self._keep(D * leverage_correction(U, weight, self.exponent, rows), size, buffers, rows)
        return U.to(M.dtype)

    def _scale(self, size: Tensor, buffers: Buffers, rows: Rows) -> Tensor:
        """The kept scale, moved with the row norms; their inverse where nothing was kept."""
        kept, before = buffers["row_scale"], buffers["row_size"]
        fresh = inverse(size, self.floor, rows)
        change = torch.where((before == 0) | (size == 0), 1.0, before / nonzero(size))
        moved = kept * change**self.follow
        return torch.where(kept == 0, fresh, moved.clamp(fresh / self.reach, fresh * self.reach))

    def _keep(self, D: Tensor, size: Tensor, buffers: Buffers, rows: Rows) -> None:
        """Writes the scale for M of unit rms row norm; a zero M changes nothing."""
        rms = rms_row_norm(D * size, rows)
        for name, value in (("row_scale", D / nonzero(rms)), ("row_size", size)):
            buffers[name].copy_(torch.where(rms == 0, buffers[name], value))

    def input_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """As the polar method."""
        return self.polar.input_dtype(dtype, device)

    def describe(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> str:
        """How, and by which engine."""
        return f"rows balanced, scale kept, {self.polar.describe(m, n, dtype, device)}"

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the polar method's on rows as units; row sizes are balanced away."""
        return (self.polar.symmetries(m, n) & ROWS) | {Symmetry.ROW_RESCALING}

    def iteration_dtype(
        self, m: int, n: int, dtype: torch.dtype, device: torch.device
    ) -> torch.dtype:
        """Return the dtype of the polar method."""
        return self.polar.iteration_dtype(m, n, dtype, device)

    def invariants(self, m: int, n: int) -> Invariants:
        """Return equal rows, and singular values as equal as the polar method leaves them."""
        return rescaled_invariants(self.polar.invariants(m, n))

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return the root mean square entry; see `Slot`."""
        return polar_rms(m, n)

    def __str__(self) -> str:
        return f"rows balanced, scale kept, {self.polar}"
