"""Freon: the momentum with its singular values raised to a power, by default a negative one.

    U = (M M')^(-c) M = sum_i sigma_i^(1 - 2 c) u_i v_i',   W <- (1 - lr wd) W - lr s U

c = 0 is gradient descent, 1/2 Muon, and c in between steepest descent in a Schatten norm; beyond
1/2, where the best exponents were found, weak directions get the larger steps and no norm explains
it. The size of U is chosen apart, with q = 2 (1 - c) = p + 1:

    SumNorm    sigma_i^p (sum_j sigma_j^q)^(-p/q)      MeanNorm    the mean over j instead
    PolarSize  U at the Frobenius norm of a polar factor (default: learning rates carry over)
    OwnSize    sigma_i^p itself, of degree p in M

Source: (2026), arXiv 2605.11181, by its abstract and descriptions at second hand.
Deviations: powers by optimal rational steps (`linalg/spectral_power.py`) or exactly; singular
values below 1e-3 of |M|_F are damped, not enlarged.
"""

from typing import Unpack

from torch import Tensor

from polarlight.linalg.spectral_power import RationalPower, SpectralPower
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.rules.shared_arguments import Shared
from polarlight.rules.torch_style import WithAdamW
from polarlight.stages.momentum import EMA
from polarlight.stages.scales import Original
from polarlight.stages.sized_power import PolarSize, Size, SizedPower


@registered_rule(lr=0.02, about="singular values to a negative power")
def freon(
    power: SpectralPower = RationalPower(6, 4),
    *,
    size: Size = PolarSize(),
    nesterov: bool = True,
    scale: Scale = Original(),
) -> UpdateRule:
    """Freon; c = a/b for `RationalPower(b, a)`, c = (1 - p)/2 for `ExactPower(p)`."""
    direction = SizedPower(power, size)
    return UpdateRule(name="freon", momentum=EMA(nesterov), map=direction, scale=scale)


class Freon(WithAdamW):
    """Freon on hidden matrices, AdamW on the rest.

    Args:
        params: A module or `model.named_parameters()`, routed by role; matrices; or param groups.
        lr: Learning rate of the matrices.
        weight_decay: Decoupled weight decay of the matrices.
        momentum: Decay of the momentum, in [0, 1).
        nesterov: Look one step ahead.
        power: `RationalPower(b, a)` for c = a/b, 2/3 by default, or `ExactPower(1 - 2 * c)`.
        size: `PolarSize()` (the default), `MeanNorm()`, `SumNorm()` or `OwnSize()`.
        scale: Factor from (fan_out, fan_in), `Original()` by default; `MatchRmsAdamW()` lets
            AdamW's learning rates carry over.
        **shared: `maximize`, `executor`, `nonfinite`, `view`, `overrides`, `aux_lr`, `aux_betas`,
            `aux_weight_decay`; see `polarlight.rules.Shared`.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> power = polarlight.linalg.ExactPower(-0.5)
        >>> optimizer = polarlight.Freon(model, lr=0.02, power=power)
        >>> [group['rule'].name for group in optimizer.param_groups]
        ['freon', 'adamw', 'adamw']
    """

    def __init__(
        self,
        params: object,
        lr: float | Tensor = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        *,
        power: SpectralPower = RationalPower(6, 4),
        size: Size = PolarSize(),
        scale: Scale = Original(),
        **shared: Unpack[Shared],
    ) -> None:
        rule = freon(power, size=size, nesterov=nesterov, scale=scale)
        super().__init__(params, lr, weight_decay, momentum, rule=rule, **shared)
