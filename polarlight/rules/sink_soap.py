"""SinkSOAP: even energies of rows and columns in Shampoo's eigenbases, without a polar factor.

    L <- b L + (1 - b) G G',   R <- b R + (1 - b) G' G,   X = Q_L' N Q_R,   E = X o X
    r = (1/m) / (E c),   c = (1/n) / (E' r)   in ten rounds from c = 1
    D = Q_L (r^(1/2) X c^(1/2)) Q_R' at norm sqrt(min(m, n)), then NorMuon's second moment along the
    long axis;   W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) D

Source: result 26 of modded-nanogpt's track 3 (2026).
Deviations: 1e-8 beside the energies is a fraction of their mean; nothing is added to the factors.
"""

from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.stages.momentum import EMA
from polarlight.stages.renormalise import KeepNorm, PolarNorm
from polarlight.stages.scales import Original
from polarlight.stages.second_moment import RowSecondMoment
from polarlight.stages.side import OnSide, Side
from polarlight.stages.sink_soap import SinkSoap


@registered_rule(lr=0.02, about="even energies in SOAP's bases, without a polar factor")
def sink_soap(
    *,
    beta: float = 0.95,
    beta2: float = 0.95,
    rounds: int = 10,
    nesterov: bool = True,
    scale: Scale = Original(),
) -> UpdateRule:
    """SinkSOAP; see the module docstring for the mathematics and `SinkSoap` for the map.

    Args:
        beta: Decay of the factors, in [0, 1).
        beta2: Decay of the second moment along the long axis, in [0, 1).
        rounds: Rounds of Sinkhorn's iteration.
        nesterov: Look one step ahead.
        scale: Factor from (fan_out, fan_in).
    """
    even = KeepNorm(OnSide(Side.LONG_AXIS, RowSecondMoment(beta2)))
    return UpdateRule(
        name="sink_soap",
        momentum=EMA(nesterov),
        map=SinkSoap(beta, rounds),
        post=(PolarNorm(), even),
        scale=scale,
    )
