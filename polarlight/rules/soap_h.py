"""SOAP-H: SOAP that moves in its first step, for the hyperball.

    M <- b1 M + (1 - b1) G,   L <- sb L + (1 - sb) G G',   R <- sb R + (1 - sb) G' G
    V <- b2 V + (1 - b2) (Q_L' G Q_R)^2,   U = Q_L ((Q_L' M Q_R) / (sqrt(V) + eps)) Q_R'
    then one QR step of the bases, unsorted

The bases come from the first gradient, before its own direction. No bias correction: the hyperball
(`hooks.HyperBall`), for which it was made, takes the direction alone.

Source: result 27 of modded-nanogpt's track 3 (2026); SOAP: Vyas et al. (2024), arXiv 2409.11321.
Deviations: eps is relative; M is kept in the bases, which is the same, since these are orthonormal.
The hyperball is a hook, not part of the rule. Betas belong to the rule; the group's `momentum` is
not used.
"""

from polarlight.lookup import check_fraction
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.stages.eigenbasis import PowerIteration
from polarlight.stages.factors import GramFactors
from polarlight.stages.momentum import RawGradient
from polarlight.stages.rotated_adam import RotatedAdam
from polarlight.stages.scales import Unscaled


@registered_rule(lr=3e-3, about="SOAP that moves in its first step")
def soap_h(
    *,
    betas: tuple[float, float] = (0.95, 0.9),
    shampoo_beta: float = 0.9,
    every: int = 1,
    eps: float = 1e-8,
    refresh: PowerIteration = PowerIteration(sort=False),
    scale: Scale = Unscaled(),
) -> UpdateRule:
    """SOAP-H; see the module docstring for the mathematics.

    Args:
        betas: Decay of the first and of the second moment, in [0, 1).
        shampoo_beta: Decay of the factors, in [0, 1).
        every: Steps between two refreshes of the bases.
        eps: Floor under sqrt(V), as a fraction of its root mean square.
        refresh: How the bases follow the factors.
        scale: Factor from (fan_out, fan_in).
    """
    check_fraction("shampoo_beta", shampoo_beta)
    adam = RotatedAdam(
        betas, GramFactors(shampoo_beta), refresh, every, eps, bias_correction=False, at_once=True
    )
    return UpdateRule(name="soap_h", momentum=RawGradient(), map=adam, scale=scale)
