"""PSGD-Kron: a Kronecker-factored preconditioner fitted by random probes, for the hyperball.

    M <- b M + (1 - b) G,   A = Q_L M Q_R',   B = Q_L^-T v Q_R^-1,   v normal
    Q_L <- Q_L - (1 / l) triu(A A' - B B') Q_L,   Q_R likewise,   l a norm of A A' + B B'
    W <- (1 - lr wd) W - lr P at rms 1,   P = Q_L' Q_L M Q_R' Q_R

The factors whiten the momentum: at the fixed point A A' and B B' are equal on average.

Source: Li (2024), arXiv 2402.11858; Pooladzandi and Li (2024), arXiv 2402.04553; the numbers of
    result 33 of modded-nanogpt's track 3.
Deviations: gradients are in units of the first one's root mean square; probes are a hash of step
and place; the direction is brought to root mean square 1, where result 33 has the hyperball
(`hooks.HyperBall`). Betas belong to the rule; `momentum` is not used.
"""

from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.stages.momentum import RawGradient
from polarlight.stages.psgd_kron import PsgdKron
from polarlight.stages.renormalise import MatchRms
from polarlight.stages.scales import Unscaled


@registered_rule(lr=3e-3, about="momentum whitened by triangular factors")
def psgd_kron(
    *, beta: float = 0.95, rate: float = 1.0, rms: float = 1.0, scale: Scale = Unscaled()
) -> UpdateRule:
    """PSGD-Kron; see the module docstring for the mathematics.

    Args:
        beta: Decay of the momentum, in [0, 1).
        rate: Step of the factors, in (0, 1].
        rms: Root mean square entry of the update.
        scale: Factor from (fan_out, fan_in).
    """
    return UpdateRule(
        name="psgd_kron",
        momentum=RawGradient(),
        map=PsgdKron(beta, rate),
        post=(MatchRms(rms),),
        scale=scale,
    )
