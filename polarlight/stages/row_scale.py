"""A row scale that is kept between steps, and what balanced polar factors have in common."""

import torch
from torch import Tensor

from polarlight.linalg.matrices import nonzero
from polarlight.linalg.properties import ROWS, Invariants, Symmetries, Symmetry, rescaled_invariants
from polarlight.linalg.row_sums import Rows
from polarlight.linalg.rows import inverse, rms_row_norm
from polarlight.linalg.slot import Buffers, MatrixMap, Slot, Stage, polar_rms

SCALE, SIZE = "row_scale", "row_size"
"""Buffers [..., m, 1], for M of unit rms row norm: the scale, and the row norms of its step."""


class RowsRescaled(Slot):
    """A slot whose image is the polar factor of its input with rows rescaled to equal leverage."""

    __slots__ = ()

    polar: MatrixMap

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the polar method's on rows as units; row sizes are balanced away."""
        return (self.polar.symmetries(m, n) & ROWS) | {Symmetry.ROW_RESCALING}

    def invariants(self, m: int, n: int) -> Invariants:
        """Return equal rows, and singular values as equal as the polar method leaves them."""
        return rescaled_invariants(self.polar.invariants(m, n))


class KeptRowScale(RowsRescaled, Stage):
    """A stage that finds the row scale over many steps: its buffers are `SCALE` and `SIZE`."""

    __slots__ = ()

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """One scale and one size per row."""
        column = torch.Size((*shape[:-1], 1))
        return {SCALE: column, SIZE: column}

    def input_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """Return the polar method's input dtype."""
        return self.polar.input_dtype(dtype, device)

    def describe(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> str:
        """How, and by which engine."""
        return f"rows balanced, scale kept, {self.polar.describe(m, n, dtype, device)}"

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return the root mean square entry; see `Slot`."""
        return polar_rms(m, n)


def moved_scale(
    size: Tensor, buffers: Buffers, rows: Rows, *, follow: float, reach: float, floor: float
) -> Tensor:
    """Return the kept scale, moved with the row norms; their inverse where nothing was kept.

    Args:
        size: Row norms in units of their rms, [..., m, 1].
        buffers: `SCALE` and `SIZE`.
        rows: Which rows these are.
        follow: Which power of a row norm's change is divided out.
        reach: Largest ratio between the kept scale and the inverse row norm, either way.
        floor: See `inverse`.
    """
    kept, before = buffers[SCALE], buffers[SIZE]
    fresh = inverse(size, floor, rows)
    change = torch.where((before == 0) | (size == 0), 1.0, before / nonzero(size))
    moved = kept * change**follow
    return torch.where(kept == 0, fresh, moved.clamp(fresh / reach, fresh * reach))


def keep_scale(D: Tensor, size: Tensor, buffers: Buffers, rows: Rows) -> None:
    """Write the scale for M of unit rms row norm; a zero M changes nothing."""
    rms = rms_row_norm(D * size, rows)
    for name, value in ((SCALE, D / nonzero(rms)), (SIZE, size)):
        buffers[name].copy_(torch.where(rms == 0, buffers[name], value))
