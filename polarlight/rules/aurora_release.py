"""Aurora, the release's iteration: every round rescales the rows of M itself.

    D = 1 / |M_i|,  U = polar(D M),  D_i <- D_i ((n/m) / |U_i|^2)^exponent,  U = polar(D M),  ...

It is Tyler's M-estimator; `aurora.py` has the problem that it solves.

Source: Tilde Research, aurora-release (2026-05).
Deviations: floors are relative to the rms row norm (the release's absolute 1e-7 turns balancing off
for small gradients); six Polar Express steps instead of twelve simple quintic ones, as exact at
half the products; gradients are not written.
"""

from dataclasses import dataclass

from torch import Tensor

from polarlight.linalg.cost import uniform_range
from polarlight.linalg.matrices import unit_scale
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.row_sums import ALL_ROWS, Rows
from polarlight.linalg.rows import (
    check_exponent,
    check_floor,
    inverse_row_norms,
    leverage_correction,
    row_significance,
)
from polarlight.linalg.slot import MatrixMap, PolarMap
from polarlight.registry import registered
from polarlight.stages.equilibrate import RELATIVE_FLOOR
from polarlight.stages.row_scale import RowsRescaled


@registered("BalancedPolar")
@dataclass(frozen=True, slots=True)
class BalancedPolar(RowsRescaled, PolarMap):
    """The release's iteration: polar(D M), D the positive diagonal that levels the row leverages.

    Shapes: tall [..., m, n] -> [..., m, n].

    Args:
        polar: The polar method; one call per round.
        rounds: Number of polar factors, at least 1. One round is MuonEq's row form.
        exponent: Power of the correction, in (0, 1]. 0.5, Tyler's iteration and the release's
            value, contracts by about n/m per round; None takes 1/(2 (1 - n/m)), at most 1, which
            contracts faster. More exact did not train better in `docs/log.md`, hence 0.5.
        floor: Rows below this fraction of the rms row norm are noise and are not lifted to a full
            row.

    Accuracy: standard deviation over mean of |U_i|^2 on momentum-like 4:1 matrices, exact polar, is
    in `tests/rules/test_aurora_release.py`. A zero row stays zero; others share n / (m - zeros).

    Raises:
        ValueError: If an argument is outside the range above.
    """

    polar: MatrixMap = NewtonSchulz(polar_express(6))
    rounds: int = 2
    exponent: float | None = 0.5
    floor: float = RELATIVE_FLOOR

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be >= 1, got {self.rounds}")
        check_exponent(self.exponent)
        check_floor(self.floor)

    def __call__(self, M: Tensor) -> Tensor:
        """The balanced polar factor of M."""
        return self._on_rows(M, ALL_ROWS)

    def _on_rows(self, M: Tensor, rows: Rows) -> Tensor:
        """The same on a part of the rows."""
        X = unit_scale(M, rows)
        weight = row_significance(X, self.floor, rows).square()
        D = inverse_row_norms(X, self.floor, rows)
        U = self.polar.on_rows(D * X, rows)
        for _ in uniform_range(self.rounds - 1):
            D = D * leverage_correction(U, weight, self.exponent, rows)
            U = self.polar.on_rows(D * X, rows)
        return U.to(M.dtype)

    def __str__(self) -> str:
        return f"rows balanced, {self.rounds} x {self.polar}"
