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

from typing import Unpack

from torch import Tensor

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.slot import MatrixMap, Slot
from polarlight.lookup import arguments_checked
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.rules.shared_arguments import Shared
from polarlight.rules.torch_style import WithAdamW
from polarlight.stages.equilibrate import EquilibrateBoth, EquilibrateRows, PhaseSwitch
from polarlight.stages.momentum import HeavyBall
from polarlight.stages.scales import MatchRmsAdamW


@registered_rule(lr=4e-3, about="rows made equal before the polar factor")
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


@arguments_checked
def rows_after(phase: int) -> PhaseSwitch:
    """Return the balance that equilibrates both sides before step `phase`, the rows from it on.

    Steps are counted from 1, as in the source: both sides are equilibrated in `phase` - 1 steps.

    Raises:
        ValueError: If `phase` is negative.
    """
    if phase < 0:
        raise ValueError(f"phase must be >= 0, got {phase}")
    return PhaseSwitch(EquilibrateBoth(), EquilibrateRows(), steps=max(phase - 1, 0))


class MuonEq(WithAdamW):
    """MuonEq on hidden matrices, AdamW on the rest.

    Args:
        params: A module or `model.named_parameters()`, routed by role; matrices; or param groups.
        lr: Learning rate of the matrices.
        weight_decay: Decoupled weight decay of the matrices.
        momentum: Decay of the momentum, in [0, 1).
        nesterov: Look one step ahead.
        balance: `EquilibrateRows()` (R, the default), `EquilibrateColumns()` (C),
            `EquilibrateBoth()` (RC), or `rows_after(phase)` (RC first, then R).
        polar: The polar method, `AutoPolar()` by default.
        scale: Factor from (fan_out, fan_in), the source's `MatchRmsAdamW()` by default, so that
            `lr` is of AdamW's size, not of Muon's.
        **shared: `maximize`, `executor`, `nonfinite`, `view`, `overrides`, `aux_lr`, `aux_betas`,
            `aux_weight_decay`; see `polarlight.rules.Shared`.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> columns = polarlight.stages.EquilibrateColumns()
        >>> optimizer = polarlight.MuonEq(model, lr=2e-3, balance=columns)
        >>> [group['rule'].name for group in optimizer.param_groups]
        ['muoneq', 'adamw', 'adamw']
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
        **shared: Unpack[Shared],
    ) -> None:
        rule = muoneq(balance, nesterov=nesterov, polar=polar, scale=scale)
        super().__init__(params, lr, weight_decay, momentum, rule=rule, **shared)
