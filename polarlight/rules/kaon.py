"""Kaon: a chaotic spectrum instead of a flat one.

    X = M / |M|_F,   X <- 4.1 (I - X X')^2 X five times,   U = X at the Frobenius norm of polar(M)
    W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) U

Small singular values are lifted as fast as Muon lifts them and then land anywhere in (0, 1). That
it trains as well is held against the view that the exact spectrum of an update matters.

Source: (2026), arXiv 2605.11181, by its abstract and descriptions at second hand; the map is in
    `linalg/chaotic.py`.
Deviations: the update is brought to the norm sqrt(min(m, n)) that a polar factor has, so that
learning rates carry over from Muon; the source divides by 1.175 alone, which leaves 0.3 to 0.6 of
it. It is enlarged by at most 4, so that one direction is never given the step of all. The input
norm is enlarged by 1.021: a matrix of rank one, which the source's first step maps to zero, arrives
at 0.999. float32, not bfloat16.
"""

from typing import Unpack

from torch import Tensor

from polarlight.linalg.chaotic import Chaotic
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.rules.shared_arguments import Shared
from polarlight.rules.torch_style import WithAdamW
from polarlight.stages.momentum import EMA
from polarlight.stages.renormalise import PolarNorm
from polarlight.stages.scales import Original


@registered_rule(lr=0.02, about="chaotic spectrum instead of a flat one")
def kaon(
    chaos: Chaotic = Chaotic(),
    *,
    nesterov: bool = True,
    norm: PolarNorm = PolarNorm(most=4.0),
    scale: Scale = Original(),
) -> UpdateRule:
    """Kaon, or with `Chaotic(MAXIMAL_SLOPE)` its steepest relative."""
    return UpdateRule(name="kaon", momentum=EMA(nesterov), map=chaos, post=(norm,), scale=scale)


class Kaon(WithAdamW):
    """Kaon on hidden matrices, AdamW on the rest.

    Args:
        params: A module or `model.named_parameters()`, routed by role; matrices; or param groups.
        lr: Learning rate of the matrices.
        weight_decay: Decoupled weight decay of the matrices.
        momentum: Decay of the momentum, in [0, 1).
        nesterov: Look one step ahead.
        chaos: `Chaotic()` (the default) or `Chaotic(MAXIMAL_SLOPE)`. Results of two devices differ
            where their singular values differ by 1e-7: see `Chaotic`.
        scale: Factor from (fan_out, fan_in), `Original()` by default; `MatchRmsAdamW()` lets
            AdamW's learning rates carry over.
        **shared: `maximize`, `executor`, `nonfinite`, `view`, `overrides`, `aux_lr`, `aux_betas`,
            `aux_weight_decay`; see `polarlight.rules.Shared`.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Kaon(model, lr=0.02, aux_lr=3e-3)
        >>> [group['rule'].name for group in optimizer.param_groups]
        ['kaon', 'adamw', 'adamw']
    """

    def __init__(
        self,
        params: object,
        lr: float | Tensor = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        *,
        chaos: Chaotic = Chaotic(),
        scale: Scale = Original(),
        **shared: Unpack[Shared],
    ) -> None:
        rule = kaon(chaos, nesterov=nesterov, scale=scale)
        super().__init__(params, lr, weight_decay, momentum, rule=rule, **shared)
