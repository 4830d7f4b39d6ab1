"""Aurora: a polar factor whose rows carry equal leverage.

    maximise <M, U>   subject to   U'U = I   and   |U_i|^2 = n/m      (tall M, m x n)

polar(M) inherits the row leverages of M, so a few rows take most of the step and others starve.
Aurora rescales the rows of M and takes the polar factor again, until the leverages agree:

    D = 1 / |M_i|,  U = polar(D M),  D_i <- D_i ((n/m) / |U_i|^2)^exponent,  U = polar(D M),  ...

Source: Tilde Research, "Aurora" (2026), arXiv 2606.27715; the iteration is its release's
(2026-05), Tyler's M-estimator. `aurora_paper.py` has the paper's own, `riemannian_aurora.py` the
ascent.
Deviations: floors are relative to the rms row norm (the release's absolute 1e-7 turns balancing off
for small gradients); six Polar Express steps instead of twelve simple quintic ones, as exact at
half the products; `side` is explicit; gradients are not written.
"""

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from polarlight.linalg.matrices import unit_scale
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.properties import ROWS, Invariants, Symmetries, Symmetry, rescaled_invariants
from polarlight.linalg.row_sums import ALL_ROWS, Rows
from polarlight.linalg.rows import (
    check_exponent,
    check_floor,
    inverse_row_norms,
    leverage_correction,
    row_significance,
)
from polarlight.linalg.slot import MatrixMap, PolarMap, Slot
from polarlight.lookup import check_object
from polarlight.optimizer.spectral import SpectralOptimizer
from polarlight.registry import registered
from polarlight.routing.route import Overrides
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.adamw import with_adamw
from polarlight.rules.aurora_warm import WarmPolar
from polarlight.stages.equilibrate import RELATIVE_FLOOR
from polarlight.stages.momentum import EMA
from polarlight.stages.scales import Original
from polarlight.stages.side import OnSide, Side


class Balancer(Protocol):
    """A map or stage on tall matrices that balances leverages by means of a polar method."""

    @property
    def polar(self) -> MatrixMap:
        """The polar method, also used where nothing is balanced."""


@registered("BalancedPolar")
@dataclass(frozen=True, slots=True)
class BalancedPolar(PolarMap):
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
    in `tests/rules/test_aurora.py`. A zero row stays zero and the others share n / (m - zeros).

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
        for _ in range(self.rounds - 1):
            D = D * leverage_correction(U, weight, self.exponent, rows)
            U = self.polar.on_rows(D * X, rows)
        return U.to(M.dtype)

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

    def __str__(self) -> str:
        return f"rows balanced, {self.rounds} x {self.polar}"


def aurora(
    solver: Balancer = WarmPolar(),
    *,
    side: Side = Side.TALL,
    nesterov: bool = True,
    scale: Scale = Original(),
) -> UpdateRule:
    """Aurora with the given solver; see the module docstring for the mathematics."""
    check_object("solver", solver)
    balanced = OnSide(side, cast(Slot, solver), otherwise=solver.polar)
    return UpdateRule(name="aurora", momentum=EMA(nesterov), map=balanced, scale=scale)


class Aurora(SpectralOptimizer):
    """Aurora on hidden matrices, AdamW on the rest. Other arguments and errors: `polarlight.Muon`.

    Args:
        solver: How leverages are balanced: `BalancedPolar` (the release), `FeedbackPolar` (the
            paper) or `RiemannianPolar`, each with its polar method and rounds.
        side: Which matrices are balanced; the others get Muon. TALL is what the author recommends.
    """

    def __init__(
        self,
        params: object,
        lr: float | Tensor = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        *,
        solver: Balancer = WarmPolar(),
        side: Side = Side.TALL,
        scale: Scale = Original(),
        maximize: bool = False,
        aux_lr: float | Tensor | None = None,
        aux_betas: tuple[float, float] = (0.9, 0.95),
        aux_weight_decay: float | None = None,
        overrides: Overrides | None = None,
    ) -> None:
        super().__init__(
            with_adamw(
                params,
                lr=aux_lr,
                betas=aux_betas,
                weight_decay=aux_weight_decay,
                beside=(scale, lr, weight_decay),
                overrides=overrides,
            ),
            lr,
            weight_decay,
            momentum,
            rule=aurora(solver, side=side, nesterov=nesterov, scale=scale),
            maximize=maximize,
        )
