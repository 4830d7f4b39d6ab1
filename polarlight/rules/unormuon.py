"""U-NorMuon: NorMuon's even rows at the norm that a tall orthonormal factor can have.

    tall M (m x n):   O = polar(M),   O_i <- O_i / sqrt(v_i),   rows of norm about sqrt(n/m)
    wide and square M:   O = polar(M)

Rows of norm 1 and orthonormal columns exclude each other when m > n (the trace is n, not m); rows
of norm sqrt(n/m) do not.

Source: Tilde Research, Aurora blog (2026-05), the step between NorMuon and Aurora.
Deviations: the blog's text is known second-hand and three readings circulate (`docs/papers.md`).
This is the row target sqrt(n/m) in front of an explicit scale; |O|_F is kept, so the target holds
for the whole.
"""

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.slot import MatrixMap
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.normuon import NorMuon
from polarlight.rules.registration import registered_rule
from polarlight.stages.momentum import EMA
from polarlight.stages.renormalise import KeepNorm
from polarlight.stages.scales import Original
from polarlight.stages.second_moment import RowSecondMoment
from polarlight.stages.side import OnSide, Side


@registered_rule(lr=0.02, about="NorMuon on tall matrices only")
def unormuon(
    *,
    beta2: float = 0.95,
    nesterov: bool = True,
    polar: MatrixMap = AutoPolar(),
    scale: Scale = Original(),
) -> UpdateRule:
    """U-NorMuon; see the module docstring for the mathematics."""
    return UpdateRule(
        name="unormuon",
        momentum=EMA(nesterov),
        map=polar,
        post=(OnSide(Side.TALL, KeepNorm(RowSecondMoment(beta2))),),
        scale=scale,
    )


class UNorMuon(NorMuon):
    """U-NorMuon on hidden matrices, AdamW on the rest.

    Args:
        params: A module or `model.named_parameters()`, routed by role; matrices; or param groups.
        lr: Learning rate of the matrices.
        weight_decay: Decoupled weight decay of the matrices.
        momentum: Decay of the momentum, in [0, 1).
        nesterov: Look one step ahead.
        beta2: Decay of the rows' second moment, in [0, 1); 0 makes every row exactly even.
        polar: The polar method, `AutoPolar()` by default.
        scale: Factor from (fan_out, fan_in), `Original()` by default; `Unscaled()` gives the
            reading without the factor for tall matrices (gvlassis/U-NorMuon).
        **shared: `maximize`, `executor`, `nonfinite`, `view`, `overrides`, `aux_lr`, `aux_betas`,
            `aux_weight_decay`; see `polarlight.rules.Shared`.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.UNorMuon(model, lr=0.02, weight_decay=0.1)
        >>> [group['rule'].name for group in optimizer.param_groups]
        ['unormuon', 'adamw', 'adamw']
    """

    _make_rule = staticmethod(unormuon)
