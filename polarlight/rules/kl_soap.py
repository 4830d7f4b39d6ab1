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

from torch import Tensor

from polarlight.optimizer.spectral import SpectralOptimizer
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.adamw import with_adamw
from polarlight.stages.eigenbasis import PowerIteration
from polarlight.stages.factors import KLFactors
from polarlight.stages.momentum import RawGradient
from polarlight.stages.rotated_adam import RotatedAdam
from polarlight.stages.scales import Unscaled


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
    adam = RotatedAdam(
        betas=betas,
        factors=KLFactors(shampoo_beta),
        refresh=refresh,
        every=every,
        eps=eps,
        bias_correction=False,
        max_side=max_side,
    )
    return UpdateRule(name="kl_soap", momentum=RawGradient(), map=adam, scale=scale)


class KLSOAP(SpectralOptimizer):
    """KL-SOAP on hidden matrices, AdamW on the rest. Other arguments: `polarlight.SOAP`.

    Args:
        betas: Decay rates of the moments in the eigenbases; without bias correction.
        shampoo_beta: Decay rate of the factors and their eigenvalues.
        every: Steps between two refreshes of the bases; stale ones are said to hurt.
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
            rule=kl_soap(
                betas=betas,
                shampoo_beta=shampoo_beta,
                every=every,
                eps=eps,
                max_side=max_side,
                scale=scale,
            ),
            maximize=maximize,
        )
