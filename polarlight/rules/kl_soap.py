"""KL-SOAP: SOAP whose factors minimise the Kullback-Leibler divergence to the second moment.

    L <- b L + (1 - b)/n G R^-1 G',   R <- b R + (1 - b)/m G' L^-1 G,   Q_L, Q_R by one QR step each
    m, v: Adam's moments of Q_L' G Q_R,   W <- (1 - lr wd) W - lr Q_L (m / (sqrt(v) + eps)) Q_R'

Shampoo's factors ignore each other; here each side is whitened by the other, so that together they
are the covariance that explains the gradients best. The inverses come from eigenvalues averaged in
the current bases, which start at 0.1.

Source: Lin et al., "Understanding and improving Shampoo and SOAP via Kullback-Leibler minimization"
    (2025), arXiv 2509.03378, and its code (yorkerlin/KL-Methods): no sorting, no bias correction,
    inverse square roots at most max(10, min(n, 4000)) on a side of length n. One QR step per step
    and the decay rates (0.95, 0.9), 0.9 as in records of the modded-nanogpt benchmark; the code
    refreshes every 10 steps with (0.9, 0.98), 0.98.
Deviations: those of `soap.py`; gradients are measured in units of the first one's root mean square,
without which 0.1 and the cap depend on the scale of the loss; no bfloat16 arithmetic.
"""

from typing import Unpack

from torch import Tensor

from polarlight.lookup import check_fraction
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.rules.shared_arguments import Shared
from polarlight.rules.torch_style import WithAdamW
from polarlight.stages.eigenbasis import PowerIteration
from polarlight.stages.factors import KLFactors
from polarlight.stages.momentum import RawGradient
from polarlight.stages.rotated_adam import RotatedAdam
from polarlight.stages.scales import Unscaled


@registered_rule(lr=3e-3, about="SOAP with factors of least Kullback-Leibler divergence")
def kl_soap(
    *,
    betas: tuple[float, float] = (0.95, 0.9),
    shampoo_beta: float = 0.9,
    every: int = 1,
    eps: float = 1e-8,
    refresh: PowerIteration = PowerIteration(sort=False),
    max_side: int = 10_000,
    scale: Scale = Unscaled(),
) -> UpdateRule:
    """KL-SOAP; see the module docstring for the mathematics and `RotatedAdam` for the arguments."""
    check_fraction("shampoo_beta", shampoo_beta)
    adam = RotatedAdam(betas, KLFactors(shampoo_beta), refresh, every, eps, False, max_side)
    return UpdateRule(name="kl_soap", momentum=RawGradient(), map=adam, scale=scale)


class KLSOAP(WithAdamW):
    """KL-SOAP on hidden matrices, AdamW on the rest.

    Args:
        params: A module or `model.named_parameters()`, routed by role; matrices; or param groups.
        lr: Learning rate of the matrices, of AdamW's size: entries of an update have root mean
            square 1.
        betas: Decay rates of the moments in the eigenbases, without bias correction, fixed:
            `momentum` in the param groups is not used.
        eps: Floor under the root of the second moment, as a fraction of its root mean square.
        weight_decay: Decoupled weight decay of the matrices.
        shampoo_beta: Decay rate of the factors and their eigenvalues.
        every: Steps between two refreshes of the bases; stale ones are said to hurt.
        max_side: A longer side of a matrix keeps its own coordinates.
        scale: Factor from (fan_out, fan_in), `Unscaled()` by default.
        **shared: `maximize`, `executor`, `nonfinite`, `view`, `overrides`, `aux_lr`, `aux_betas`,
            `aux_weight_decay`; see `polarlight.rules.Shared`.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.KLSOAP(model, lr=3e-3, max_side=1024)
        >>> [group['rule'].name for group in optimizer.param_groups]
        ['kl_soap', 'adamw', 'adamw']
    """

    def __init__(
        self,
        params: object,
        lr: float | Tensor = 3e-3,
        betas: tuple[float, float] = (0.95, 0.9),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        shampoo_beta: float = 0.9,
        every: int = 1,
        max_side: int = 10_000,
        scale: Scale = Unscaled(),
        **shared: Unpack[Shared],
    ) -> None:
        rule = kl_soap(
            betas=betas,
            shampoo_beta=shampoo_beta,
            every=every,
            eps=eps,
            max_side=max_side,
            scale=scale,
        )
        super().__init__(params, lr, weight_decay, rule=rule, **shared)
