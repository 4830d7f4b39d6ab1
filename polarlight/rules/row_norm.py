"""RowNorm: every row of the momentum at one length.

    M <- b M + (1 - b) G,   U_i = M_i / |M_i|,   W <- (1 - lr wd) W - lr rms sqrt(n) U

Rows are tokens of an embedding or a head, experts of a router: units that may be permuted, and that
the loss treats apart. The rule commutes with permutations and sign changes of rows and with
rotations of what they read or write, and ignores how often a token occurs. `centred(row_norm())` is
for softmax outputs, `oriented(row_norm(), Columns())` for units that are columns.

Source: the symmetry-compatible stack (2026), arXiv 2605.18106, by its code
    (timlautk/equivariant_optimizers): EMA, no Nesterov.
Deviations: the floor is 1e-4 of the rms row norm instead of 1e-8 absolute. The scale makes entries
of an update as large as AdamW's (`Unscaled()` gives the source's unit rows). As in the source, a
token that was seen once goes on moving at full length while its momentum decays, log(floor) /
log(b) = 180 steps long; a larger floor shortens that.
"""

from dataclasses import dataclass
from math import sqrt

from polarlight.registry import registered
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.stages.equilibrate import RELATIVE_FLOOR, EquilibrateRows
from polarlight.stages.momentum import EMA


@registered("RowRms")
@dataclass(frozen=True, slots=True)
class RowRms:
    """rms * sqrt(fan_in): entries of unit rows get the root mean square of an AdamW update."""

    rms: float = 0.2

    def __post_init__(self) -> None:
        if not self.rms > 0:
            raise ValueError(f"rms must be > 0, got {self.rms}")

    def __call__(self, fan_out: int, fan_in: int) -> float:
        """The factor."""
        return self.rms * sqrt(fan_in)


ROW_RMS = RowRms()


@registered_rule(lr=4e-3, about="rows of the momentum normalized")
def row_norm(*, floor: float = RELATIVE_FLOOR, scale: Scale = ROW_RMS) -> UpdateRule:
    """RowNorm; see the module docstring for the mathematics.

    Args:
        floor: Rows below this fraction of the rms row norm are not lifted to a full row.
        scale: Factor from (fan_out, fan_in).
    """
    return UpdateRule(
        name="row_norm", momentum=EMA(nesterov=False), map=EquilibrateRows(floor), scale=scale
    )
