"""Muon: the momentum's polar factor.

    U = polar(M),   W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) U

Every direction in which the momentum points gets the same step, however small its singular value.

Source: Jordan et al., "Muon" (2024), kellerjordan.github.io/posts/muon.
Deviations: the momentum is an EMA (torch, NorMuon, Aurora); a polar factor does not see the
    difference.
"""

from torch import Tensor

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.slot import MatrixMap
from polarlight.optimizer.spectral import SpectralOptimizer
from polarlight.routing.route import Overrides
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.adamw import with_adamw
from polarlight.stages.momentum import EMA
from polarlight.stages.scales import Original


def muon(
    *,
    nesterov: bool = True,
    polar: MatrixMap = AutoPolar(),
    scale: Scale = Original(),
) -> UpdateRule:
    """Muon with the given polar method; see the module docstring for the mathematics."""
    return UpdateRule(name="muon", momentum=EMA(nesterov), map=polar, scale=scale)


class Muon(SpectralOptimizer):
    """Muon on hidden matrices, AdamW on the rest.

    Args:
        params: A module or `model.named_parameters()`: hidden matrices get Muon; embeddings, heads,
            norms and biases get AdamW. Or matrices alone, or param groups.
        lr: Learning rate of the matrices.
        weight_decay: Decoupled weight decay of the matrices.
        momentum: Decay of the momentum, in [0, 1).
        nesterov: Look one step ahead.
        polar: The polar method.
        scale: Factor from (fan_out, fan_in); `MatchRmsAdamW()` lets AdamW's learning rates carry
            over.
        maximize: Ascend instead of descend.
        aux_lr: AdamW's learning rate. None takes 3e-3, or `lr` where the scale is
            `MatchRmsAdamW`: updates of matrices are as large as AdamW's then.
        aux_betas: AdamW's decay rates.
        aux_weight_decay: AdamW's weight decay, never applied to vectors. None takes 0, or
            `weight_decay` where the scale is `MatchRmsAdamW`.
        overrides: Other routes for some parameters: `{Role.CONV: Role.HIDDEN}` gives convolutions
            Muon, `{"*.layers.0.*": Route(lr=1e-3)}` a layer its own learning rate, and
            `{"decoder.*": AdamWRule()}` excludes. Keys: roles, patterns on names, or pairs of both.

    Raises:
        ValueError: If a number is out of range or a bare tensor is no matrix.
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
        maximize: bool = False,
        aux_lr: float | Tensor | None = None,
        aux_betas: tuple[float, float] = (0.9, 0.95),
        aux_weight_decay: float | None = None,
        overrides: Overrides | None = None,
    ) -> None:
        super().__init__(
            with_adamw(
                params,
                lr=aux_lr,
                betas=aux_betas,
                weight_decay=aux_weight_decay,
                beside=(scale, lr, weight_decay),
                overrides=overrides,
            ),
            lr,
            weight_decay,
            momentum,
            rule=muon(nesterov=nesterov, polar=polar, scale=scale),
            maximize=maximize,
        )
