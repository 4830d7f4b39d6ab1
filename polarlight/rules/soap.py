"""SOAP: Adam in the eigenbases of Shampoo's factors.

    L <- b L + (1 - b) G G',   R <- b R + (1 - b) G' G,   Q_L, Q_R their eigenvectors
    m, v: Adam's moments of Q_L' G Q_R,   W <- (1 - lr wd) W - lr Q_L (m / (sqrt(v) + eps)) Q_R'

The first gradient sets factors and bases and moves nothing; later ones are rotated in bases of the
past. Every `every` steps each basis takes one QR step, sorted by q' L q; m turns with the bases, v
is reordered. With fresh eigenvectors (`PowerIteration(rounds=...)`, `every=1`) and no bias
correction it is eigenvalue-corrected Shampoo (Anil et al. (2020), arXiv 2002.09018, appendix B).

Source: Vyas et al., "SOAP" (2024), arXiv 2409.11321, and its code (nikhilvyas/SOAP).
Deviations: weights decay with the step, also in the first, where the code lets the decay follow:
its lr and wd are our lr (1 - lr wd) and wd / (1 - lr wd). eps and the floor of the bases are
relative. The start is a singular value decomposition of G; where it has no weight the code's
vectors are rounding. Rows and columns that never had a gradient rest. Betas belong to the rule;
the group's `momentum` is not used. No merging of dimensions, no normalised gradients.
"""

from typing import Unpack

from torch import Tensor

from polarlight.lookup import check_fraction
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.rules.shared_arguments import Shared
from polarlight.rules.torch_style import WithAdamW
from polarlight.stages.eigenbasis import PowerIteration
from polarlight.stages.factors import GramFactors
from polarlight.stages.momentum import RawGradient
from polarlight.stages.rotated_adam import RotatedAdam
from polarlight.stages.scales import Unscaled


@registered_rule(lr=3e-3, about="Adam in the eigenbases of Shampoo's factors")
def soap(
    *,
    betas: tuple[float, float] = (0.95, 0.95),
    shampoo_beta: float = 0.95,
    every: int = 10,
    eps: float = 1e-8,
    refresh: PowerIteration = PowerIteration(),
    bias_correction: bool = True,
    max_side: int = 10_000,
    scale: Scale = Unscaled(),
) -> UpdateRule:
    """SOAP; see the module docstring for the mathematics and `RotatedAdam` for the arguments."""
    check_fraction("shampoo_beta", shampoo_beta)
    factors = GramFactors(shampoo_beta)
    adam = RotatedAdam(betas, factors, refresh, every, eps, bias_correction, max_side)
    return UpdateRule(name="soap", momentum=RawGradient(), map=adam, scale=scale)


class SOAP(WithAdamW):
    """SOAP on hidden matrices, AdamW on the rest.

    Args:
        params: A module or `model.named_parameters()`, routed by role; matrices; or param groups.
        lr: Learning rate of the matrices; entries of an update have rms 1, as AdamW's.
        betas: Decay rates of the moments in the eigenbases; the groups' `momentum` is not used.
        eps: Floor under the root of the second moment, as a fraction of its root mean square.
        weight_decay: Decoupled weight decay of the matrices.
        shampoo_beta: Decay rate of the factors.
        every: Steps between two refreshes of the bases.
        max_side: A longer side of a matrix keeps its own coordinates.
        scale: Factor from (fan_out, fan_in), `Unscaled()` by default.
        **shared: `maximize`, `executor`, `nonfinite`, `view`, `overrides`, `aux_lr`, `aux_betas`,
            `aux_weight_decay`; see `polarlight.rules.Shared`.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.SOAP(model, lr=3e-3, every=5)
        >>> [group['rule'].name for group in optimizer.param_groups]
        ['soap', 'adamw', 'adamw']
    """

    def __init__(
        self,
        params: object,
        lr: float | Tensor = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        shampoo_beta: float = 0.95,
        every: int = 10,
        max_side: int = 10_000,
        scale: Scale = Unscaled(),
        **shared: Unpack[Shared],
    ) -> None:
        rule = soap(
            betas=betas,
            shampoo_beta=shampoo_beta,
            every=every,
            eps=eps,
            max_side=max_side,
            scale=scale,
        )
        super().__init__(params, lr, weight_decay, rule=rule, **shared)
