"""PolarAdamW: the polar factor of AdamW's direction.

    m <- b1 m + (1 - b1) G,   v <- b2 v + (1 - b2) G^2 (entry by entry)
    W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) polar(m / (sqrt(v) + eps))

AdamW evens out the entries, the polar factor the singular values; equivariance under rotations is
given up for equivariance under permutations and sign changes of rows and columns.

Source: H. Zhang, "PolarAdamW" (2026), arXiv 2605.07067, by its abstract: decay rates, scale and
    polar method are our choice.
Deviations: the bias corrections are left out, as a polar factor does not see factors; eps is
relative. Betas belong to the rule; the group's `momentum` is not used.
"""

from typing import Unpack

from torch import Tensor

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.slot import MatrixMap
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.rules.shared_arguments import Shared
from polarlight.rules.torch_style import WithAdamW
from polarlight.stages.adam import AdamDirection
from polarlight.stages.momentum import RawGradient
from polarlight.stages.scales import Original


@registered_rule(lr=0.02, about="polar factor of AdamW's direction")
def polar_adamw(
    *,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    polar: MatrixMap = AutoPolar(),
    scale: Scale = Original(),
) -> UpdateRule:
    """PolarAdamW with the given polar method; see the module docstring for the mathematics."""
    return UpdateRule(
        name="polar_adamw",
        momentum=RawGradient(),
        balance=AdamDirection(betas, eps),
        map=polar,
        scale=scale,
    )


class PolarAdamW(WithAdamW):
    """PolarAdamW on hidden matrices, AdamW on the rest.

    Args:
        params: A module or `model.named_parameters()`, routed by role; matrices; or param groups.
        lr: Learning rate of the matrices, of Muon's size.
        betas: AdamW's decay rates for the matrices, fixed: `momentum` in the param groups is not
            used.
        eps: Floor under the root of the second moment, as a fraction of its root mean square.
        weight_decay: Decoupled weight decay of the matrices.
        polar: The polar method, `AutoPolar()` by default.
        scale: Factor from (fan_out, fan_in), `Original()` by default; `MatchRmsAdamW()` lets
            AdamW's learning rates carry over.
        **shared: `maximize`, `executor`, `nonfinite`, `view`, `overrides`, `aux_lr`, `aux_betas`,
            `aux_weight_decay`; see `polarlight.rules.Shared`.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.PolarAdamW(model, lr=0.02, betas=(0.9, 0.99))
        >>> [group['rule'].name for group in optimizer.param_groups]
        ['polar_adamw', 'adamw', 'adamw']
    """

    def __init__(
        self,
        params: object,
        lr: float | Tensor = 0.02,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        polar: MatrixMap = AutoPolar(),
        scale: Scale = Original(),
        **shared: Unpack[Shared],
    ) -> None:
        rule = polar_adamw(betas=betas, eps=eps, polar=polar, scale=scale)
        super().__init__(params, lr, weight_decay, rule=rule, **shared)
