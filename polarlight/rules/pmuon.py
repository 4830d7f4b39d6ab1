"""PMuon: the polar factor of a momentum between powers of its own Gram sums.

    C <- b C + N'N,   E <- b E + N N',   C~ = N'N + b C,   E~ = N N' + b E
    W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) polar(E~^(-0.3) N C~^(-0.3))

Between the polar factor of N (power 0) and Shampoo of the momentum. The newest momentum counts
1 + b times.

Source: result 18 of modded-nanogpt's track 3 (2026) and its notes.
Deviations: the shift of 1e-6 is a fraction of the mean eigenvalue; the bases start as singular
vectors of the first momentum, not at random; powers are not rescaled, as a polar factor follows.
"""

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.slot import MatrixMap
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.stages.eigenbasis import PowerIteration
from polarlight.stages.momentum import EMA
from polarlight.stages.momentum_power import MomentumPower
from polarlight.stages.scales import Original


@registered_rule(lr=0.02, about="polar factor of a momentum between powers of its Gram sums")
def pmuon(
    *,
    beta: float = 0.95,
    exponent: float = -0.3,
    refresh: PowerIteration = PowerIteration(sort=False),
    nesterov: bool = True,
    polar: MatrixMap = AutoPolar(),
    scale: Scale = Original(),
) -> UpdateRule:
    """PMuon; see the module docstring for the mathematics and `MomentumPower` for the stage.

    Args:
        beta: Decay of the Gram sums, in [0, 1).
        exponent: Power of each, in [-1, 0].
        refresh: How the bases follow the sums.
        nesterov: Look one step ahead.
        polar: The polar method.
        scale: Factor from (fan_out, fan_in).
    """
    balance = MomentumPower(beta, exponent, refresh)
    return UpdateRule(name="pmuon", momentum=EMA(nesterov), balance=balance, map=polar, scale=scale)
