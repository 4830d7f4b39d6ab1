"""Hybrids: rows brought to one length before the polar factor, or after it.

    row then polar:  U = polar(D M),  D = 1 / |M_i|        polar then row:  U_i = polar(M)_i / |.|
    M <- b M + (1 - b) G,   W <- (1 - lr wd) W - lr s U

Gate and up projections have a neuron per row, down projections one per column; neurons may be
permuted, not mixed, while the residual stream may be rotated. Both orders commute with exactly
that. The first ignores the sizes of the rows and has equal singular values, the second equal rows.

Source: the symmetry-compatible stack (2026), arXiv 2605.18106, by its code
    (timlautk/equivariant_optimizers), HybridPolarGradM. The first order is MuonEq's
    (arXiv 2603.28254) without Nesterov.
Deviations: s makes entries as large as AdamW's. The source multiplies by the nuclear norm of the
row-normalised matrix, sqrt(m) to sqrt(m n) whatever the gradient: `row_then_polar(NuclearPolar())`
with `scale=Unscaled()` does, for each matrix of a batch apart (the source sums over experts). The
centred form projects between the two maps as well, which keeps the singular values equal.
"""

from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.slot import MatrixMap
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.rules.row_norm import ROW_RMS
from polarlight.stages.equilibrate import RELATIVE_FLOOR, EquilibrateRows
from polarlight.stages.momentum import EMA
from polarlight.stages.scales import MatchRmsAdamW


@registered_rule(lr=4e-3, about="rows normalized, then their polar factor")
def row_then_polar(
    polar: MatrixMap = NewtonSchulz(polar_express(6)),
    *,
    floor: float = RELATIVE_FLOOR,
    scale: Scale = MatchRmsAdamW(),
) -> UpdateRule:
    """The polar factor of the row-normalised momentum; `oriented(..., Columns())` for columns."""
    return UpdateRule(
        name="row_then_polar",
        momentum=EMA(nesterov=False),
        balance=EquilibrateRows(floor),
        map=polar,
        scale=scale,
    )


@registered_rule(lr=4e-3, about="polar factor, then its rows normalized")
def polar_then_row(
    polar: MatrixMap = NewtonSchulz(polar_express(6)),
    *,
    floor: float = RELATIVE_FLOOR,
    scale: Scale = ROW_RMS,
) -> UpdateRule:
    """The polar factor with its rows at one length; a nuclear norm would have no effect here."""
    return UpdateRule(
        name="polar_then_row",
        momentum=EMA(nesterov=False),
        map=polar,
        post=(EquilibrateRows(floor),),
        scale=scale,
    )
