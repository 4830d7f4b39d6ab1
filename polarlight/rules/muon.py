"""Muon: the momentum's polar factor.

    U = polar(M),   W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) U

Every direction in which the momentum points gets the same step, however small its singular value.

Source: Jordan et al., "Muon" (2024), kellerjordan.github.io/posts/muon.
Deviations: the momentum is an EMA (torch, NorMuon, Aurora); a polar factor does not see the
    difference.
"""

from typing import Unpack

from torch import Tensor

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.slot import MatrixMap
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.rules.shared_arguments import Shared
from polarlight.rules.torch_style import WithAdamW
from polarlight.stages.momentum import EMA
from polarlight.stages.scales import Original


@registered_rule(lr=0.02, about="polar factor of the momentum")
def muon(
    *,
    nesterov: bool = True,
    polar: MatrixMap = AutoPolar(),
    scale: Scale = Original(),
) -> UpdateRule:
    """Muon with the given polar method; see the module docstring for the mathematics."""
    return UpdateRule(name="muon", momentum=EMA(nesterov), map=polar, scale=scale)


class Muon(WithAdamW):
    """Muon on hidden matrices, AdamW on the rest.

    Args:
        params: A module or `model.named_parameters()`, routed by role; matrices; or param groups.
        lr: Learning rate of the matrices.
        weight_decay: Decoupled weight decay of the matrices.
        momentum: Decay of the momentum, in [0, 1).
        nesterov: Look one step ahead.
        polar: The polar method, `AutoPolar()` by default.
        scale: Factor from (fan_out, fan_in), `Original()` by default; `MatchRmsAdamW()` lets
            AdamW's learning rates carry over.
        **shared: `maximize`, `executor`, `nonfinite`, `view`, `overrides`, `aux_lr`, `aux_betas`,
            `aux_weight_decay`; see `polarlight.rules.Shared`.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02, aux_lr=3e-3)
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
        polar: MatrixMap = AutoPolar(),
        scale: Scale = Original(),
        **shared: Unpack[Shared],
    ) -> None:
        rule = muon(nesterov=nesterov, polar=polar, scale=scale)
        super().__init__(params, lr, weight_decay, momentum, rule=rule, **shared)
