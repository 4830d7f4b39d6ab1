"""MuonEq: the momentum is equilibrated before its polar factor is taken.

    R:  M_i / |M_i|      C:  M_j / |M_j| (columns)      RC:  both at once      then  U = polar(.)

Rows or columns of very different size make the matrix ill-conditioned, and Newton-Schulz inexact; a
diagonal scaling removes that cheaply. R on a tall matrix is the first round of Aurora.

Source: "MuonEq" (2026), arXiv 2603.28254, and its code (MaeChd/muon-eq): heavy ball, RMS-matched
    scale.
Deviations: the floor is relative to the rms row norm; the code's 1e-8 on the squared norm switches
the method off for gradients below 1e-4. RC may switch to R at step `phase`, as the code does (its
docstring says otherwise).
"""

from torch import Tensor

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.slot import MatrixMap, Slot
from polarlight.optimizer.spectral import SpectralOptimizer
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.adamw import with_adamw
from polarlight.stages.equilibrate import EquilibrateBoth, EquilibrateRows, PhaseSwitch
from polarlight.stages.momentum import HeavyBall
from polarlight.stages.scales import MatchRmsAdamW


def muoneq(
    balance: Slot = EquilibrateRows(),
    *,
    nesterov: bool = True,
    polar: MatrixMap = AutoPolar(),
    scale: Scale = MatchRmsAdamW(),
) -> UpdateRule:
    """MuonEq with the given balance: `EquilibrateRows()`, `EquilibrateColumns()` or both."""
    return UpdateRule(
        name="muoneq", momentum=HeavyBall(nesterov), balance=balance, map=polar, scale=scale
    )


def rows_after(phase: int) -> PhaseSwitch:
    """Return the balance that equilibrates both sides before step `phase`, the rows from it on.

    Steps are counted from 1, as in the source: both sides are equilibrated in `phase` - 1 steps.

    Raises:
        ValueError: If `phase` is negative.
    """
    if phase < 0:
        raise ValueError(f"phase must be >= 0, got {phase}")
    return PhaseSwitch(EquilibrateBoth(), EquilibrateRows(), steps=max(phase - 1, 0))


class MuonEq(SpectralOptimizer):
    """MuonEq on hidden matrices, AdamW on the rest. Other arguments and errors: `polarlight.Muon`.

    Args:
        balance: `EquilibrateRows()` (R, the default), `EquilibrateColumns()` (C),
            `EquilibrateBoth()` (RC), or `rows_after(phase)` (RC first, then R).
        scale: The source's own by default, so `lr` is of AdamW's size, not of Muon's.
    """

    def __init__(
        self,
        params: object,
        lr: float | Tensor = 2e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        *,
        balance: Slot = EquilibrateRows(),
        polar: MatrixMap = AutoPolar(),
        scale: Scale = MatchRmsAdamW(),
        maximize: bool = False,
        aux_lr: float | Tensor | None = None,
        aux_betas: tuple[float, float] = (0.9, 0.95),
        aux_weight_decay: float | None = None,
    ) -> None:
        super().__init__(
            with_adamw(
                params,
                lr=aux_lr,
                betas=aux_betas,
                weight_decay=aux_weight_decay,
                beside=(scale, lr, weight_decay),
            ),
            lr,
            weight_decay,
            momentum,
            rule=muoneq(balance, nesterov=nesterov, polar=polar, scale=scale),
            maximize=maximize,
        )
