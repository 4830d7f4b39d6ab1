"""PolarGrad: the polar factor, as long as the matrix's nuclear norm.

    momentum first:   M <- b M + (1 - b) G,  U = polar(M),   W <- (1 - lr wd) W - lr <M, U> U
    polar first:      U = polar(G),  P <- b P + (1 - b) U,   W <- (1 - lr wd) W - lr <G, U> P

<M, U> is the nuclear norm, the one that is dual to the spectral norm: steepest descent whose steps
vanish with the gradient, where Muon's keep their length and need a falling learning rate.

Source: Lau et al., "PolarGrad" (2025), arXiv 2505.21799, and its code (timlautk/polargrad).
Deviations: QDWH converges here (the code stops after two steps); a batch has a nuclear norm for
each matrix, not their sum. Not free of scale, by design: U(c M) = c^power U(M), so lr has the size
of the loss in it. In the form with the polar factor first the decay rate belongs to the rule.
"""

from typing import Unpack

from torch import Tensor

from polarlight.linalg.nuclear import NuclearPolar
from polarlight.linalg.qdwh import QDWH
from polarlight.linalg.slot import MatrixMap
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.rules.shared_arguments import Shared
from polarlight.rules.torch_style import WithAdamW
from polarlight.stages.averaged_polar import AveragedPolar
from polarlight.stages.momentum import EMA, RawGradient
from polarlight.stages.scales import Unscaled


@registered_rule(lr=0.02, about="polar factor as long as the nuclear norm")
def polargrad(
    *,
    polar: MatrixMap = QDWH(),
    power: float = 1.0,
    nesterov: bool = False,
    scale: Scale = Unscaled(),
) -> UpdateRule:
    """PolarGrad with the momentum first, the source's default."""
    nuclear = NuclearPolar(polar, power)
    return UpdateRule(name="polargrad", momentum=EMA(nesterov), map=nuclear, scale=scale)


@registered_rule(lr=0.02, about="PolarGrad with averaged polar factors")
def polargrad_polar_first(
    *, beta: float = 0.95, polar: MatrixMap = QDWH(), scale: Scale = Unscaled()
) -> UpdateRule:
    """PolarGrad with the polar factor first; for `SpectralOptimizer(params, rule=...)`."""
    averaged = AveragedPolar(polar, beta)
    return UpdateRule(
        name="polargrad_polar_first", momentum=RawGradient(), map=averaged, scale=scale
    )


class PolarGrad(WithAdamW):
    """PolarGrad on hidden matrices, AdamW on the rest.

    Args:
        params: A module or `model.named_parameters()`, routed by role; matrices; or param groups.
        lr: Learning rate of the matrices; has the scale of the loss in it, as steps grow with the
            gradient.
        weight_decay: Decoupled weight decay of the matrices.
        momentum: Decay of the momentum, in [0, 1).
        nesterov: Look one step ahead.
        polar: The polar method, `QDWH()` by default; its error enters the length as well.
        power: Of the nuclear norm, in [0, 1]; 0 gives Muon.
        scale: Factor from (fan_out, fan_in), `Unscaled()` by default.
        **shared: `maximize`, `executor`, `nonfinite`, `view`, `overrides`, `aux_lr`, `aux_betas`,
            `aux_weight_decay`; see `polarlight.rules.Shared`.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.PolarGrad(model, lr=0.02, power=0.5)
        >>> [group['rule'].name for group in optimizer.param_groups]
        ['polargrad', 'adamw', 'adamw']
    """

    def __init__(
        self,
        params: object,
        lr: float | Tensor = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = False,
        *,
        polar: MatrixMap = QDWH(),
        power: float = 1.0,
        scale: Scale = Unscaled(),
        **shared: Unpack[Shared],
    ) -> None:
        rule = polargrad(polar=polar, power=power, nesterov=nesterov, scale=scale)
        super().__init__(params, lr, weight_decay, momentum, rule=rule, **shared)
