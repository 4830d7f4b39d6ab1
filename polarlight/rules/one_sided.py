"""One-sided polar factors: left and right PolarGrad, with a size of their own choice.

    M <- b M + (1 - b) G,   U = M (M'M)^(-1/2)  or  (M M')^(-1/2) M,   W <- (1 - lr wd) W - lr s U

In exact arithmetic left, right and the full polar factor are the same matrix, and this is Muon
without Nesterov. The side is a matter of cost (the Gram matrix of the short one is the small one)
and of damping. Rows must not be treated apart here: the rule commutes with all rotations.

Source: the symmetry-compatible stack (2026), arXiv 2605.18106, by its code
    (timlautk/equivariant_optimizers): RightPolarGradM for tall, LeftPolarGradM for wide matrices.
Deviations: s does not contain the nuclear norm unless asked for: `one_sided(NuclearPolar(polar))`
with `scale=Unscaled()` is the source's alpha = 1. Cut-off and damping are relative; the source adds
1e-8 to the Gram matrix, which shrinks the updates of small gradients. A centred left Gram matrix is
singular: `centred(one_sided())` cuts its null direction off, where a clamp would blow it up.
"""

from polarlight.linalg.one_sided import SHORT_SIDE
from polarlight.linalg.slot import MatrixMap
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.stages.momentum import EMA
from polarlight.stages.scales import MatchRmsAdamW


@registered_rule(lr=4e-3, about="polar factor by the Gram matrix of the shorter side")
def one_sided(polar: MatrixMap = SHORT_SIDE, *, scale: Scale = MatchRmsAdamW()) -> UpdateRule:
    """One-sided PolarGrad; see the module docstring for the mathematics.

    Args:
        polar: `EigenPolar(cutoff)` or `RegularisedPolar(delta)` on the short side,
            `OneSidedPolar(side, engine)` on a given one; around them `NuclearPolar(polar, power)`.
        scale: Factor from (fan_out, fan_in): the RMS of an AdamW update, or `Unscaled()`.
    """
    return UpdateRule(name="one_sided", momentum=EMA(nesterov=False), map=polar, scale=scale)
