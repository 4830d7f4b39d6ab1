"""Aurora: a polar factor whose rows carry equal leverage.

    maximise <M, U>   subject to   U'U = I   and   |U_i|^2 = n/m      (tall M, m x n)

polar(M) inherits the row leverages of M, so a few rows take most of the step and others starve.
Aurora rescales the rows of M and takes the polar factor again, until the leverages agree.

The solvers are files of their own: `aurora_warm.py` (ours, the default), `aurora_release.py`,
`aurora_paper.py`, `riemannian_aurora.py` and `aurora_exact.py`.

Source: Tilde Research, "Aurora" (2026), arXiv 2606.27715.
Deviations: `side` is explicit.
"""

from typing import Protocol, Unpack, cast

from torch import Tensor

from polarlight.linalg.slot import MatrixMap, Slot
from polarlight.lookup import check_object, check_objects_in
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.aurora_warm import WarmPolar
from polarlight.rules.registration import registered_rule
from polarlight.rules.shared_arguments import Shared
from polarlight.rules.torch_style import WithAdamW
from polarlight.stages.momentum import EMA
from polarlight.stages.scales import Original
from polarlight.stages.side import OnSide, Side


class Balancer(Protocol):
    """A map or stage on tall matrices that balances leverages by means of a polar method."""

    @property
    def polar(self) -> MatrixMap:
        """The polar method, also used where nothing is balanced."""


@registered_rule(lr=0.02, about="polar factor with equal rows")
def aurora(
    solver: Balancer = WarmPolar(),
    *,
    side: Side = Side.TALL,
    nesterov: bool = True,
    scale: Scale = Original(),
) -> UpdateRule:
    """Aurora with the given solver; see the module docstring for the mathematics."""
    check_object("solver", solver)
    check_objects_in(solver)
    balanced = OnSide(side, cast(Slot, solver), otherwise=solver.polar)
    return UpdateRule(name="aurora", momentum=EMA(nesterov), map=balanced, scale=scale)


class Aurora(WithAdamW):
    """Aurora on hidden matrices, AdamW on the rest.

    Args:
        params: A module or `model.named_parameters()`, routed by role; matrices; or param groups.
        lr: Learning rate of the matrices.
        weight_decay: Decoupled weight decay of the matrices.
        momentum: Decay of the momentum, in [0, 1).
        nesterov: Look one step ahead.
        solver: How leverages are balanced: `WarmPolar()` (ours, one polar factor per step; the
            default), `BalancedPolar()` (the release), `FeedbackPolar()` (the paper),
            `RiemannianPolar()` or `ExactBalanced()`, each with its polar method.
        side: Which matrices are balanced, `Side.TALL` by default, as the author recommends; the
            others get Muon.
        scale: Factor from (fan_out, fan_in), `Original()` by default; `MatchRmsAdamW()` lets
            AdamW's learning rates carry over.
        **shared: `maximize`, `executor`, `nonfinite`, `view`, `overrides`, `aux_lr`, `aux_betas`,
            `aux_weight_decay`; see `polarlight.rules.Shared`.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> release = polarlight.rules.BalancedPolar()
        >>> optimizer = polarlight.Aurora(model, lr=0.02, aux_lr=3e-3, solver=release)
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
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
        **shared: Unpack[Shared],
    ) -> None:
        rule = aurora(solver, side=side, nesterov=nesterov, scale=scale)
        super().__init__(params, lr, weight_decay, momentum, rule=rule, **shared)
