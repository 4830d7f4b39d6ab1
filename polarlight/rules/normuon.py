"""NorMuon: Muon with every row (neuron) divided by the running size of its updates.

    O = polar(M),   v <- beta2 v + (1 - beta2) mean_j O_ij^2,   O_i <- O_i / sqrt(v_i)

The polar factor of a tall matrix has rows of unequal norm; NorMuon evens them out over time. The
paper then fixes the RMS of the update, the official code keeps its Frobenius norm; both are here.

Source: Li et al., "NorMuon" (2025), arXiv 2510.05491, and its code (zichongli5/NorMuon).
Deviations: no absolute 1e-10 beside sqrt(v): a zero row is zero by itself.
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
from polarlight.stages.renormalise import KeepNorm, MatchRms
from polarlight.stages.scales import Original, Unscaled
from polarlight.stages.second_moment import RowSecondMoment


@registered_rule(lr=0.02, about="Muon with rows evened out over time")
def normuon(
    *,
    beta2: float = 0.95,
    nesterov: bool = True,
    polar: MatrixMap = AutoPolar(),
    scale: Scale = Original(),
) -> UpdateRule:
    """NorMuon as in the official code: rows evened out, Frobenius norm kept, Muon's scale."""
    post = (KeepNorm(RowSecondMoment(beta2)),)
    return UpdateRule(name="normuon", momentum=EMA(nesterov), map=polar, post=post, scale=scale)


@registered_rule(lr=0.02, about="NorMuon at a fixed RMS, as in its paper")
def normuon_paper(
    *,
    beta2: float = 0.95,
    rms: float = 0.2,
    nesterov: bool = False,
    polar: MatrixMap = AutoPolar(),
) -> UpdateRule:
    """NorMuon as in the paper: rows evened out, root mean square of the update fixed."""
    return UpdateRule(
        name="normuon_paper",
        momentum=EMA(nesterov),
        map=polar,
        post=(RowSecondMoment(beta2), MatchRms(rms)),
        scale=Unscaled(),
    )


class NorMuon(WithAdamW):
    """NorMuon on hidden matrices, AdamW on the rest.

    Args:
        params: A module or `model.named_parameters()`, routed by role; matrices; or param groups.
        lr: Learning rate of the matrices.
        weight_decay: Decoupled weight decay of the matrices.
        momentum: Decay of the momentum, in [0, 1).
        nesterov: Look one step ahead.
        beta2: Decay of the rows' second moment, in [0, 1).
        polar: The polar method, `AutoPolar()` by default.
        scale: Factor from (fan_out, fan_in), `Original()` by default; `MatchRmsAdamW()` lets
            AdamW's learning rates carry over.
        **shared: `maximize`, `executor`, `nonfinite`, `view`, `overrides`, `aux_lr`, `aux_betas`,
            `aux_weight_decay`; see `polarlight.rules.Shared`.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.NorMuon(model, lr=0.02, beta2=0.9)
        >>> [group['rule'].name for group in optimizer.param_groups]
        ['normuon', 'adamw', 'adamw']
    """

    _make_rule = staticmethod(normuon)

    def __init__(
        self,
        params: object,
        lr: float | Tensor = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        *,
        beta2: float = 0.95,
        polar: MatrixMap = AutoPolar(),
        scale: Scale = Original(),
        **shared: Unpack[Shared],
    ) -> None:
        rule = self._make_rule(beta2=beta2, nesterov=nesterov, polar=polar, scale=scale)
        super().__init__(params, lr, weight_decay, momentum, rule=rule, **shared)
