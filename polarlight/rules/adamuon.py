"""AdaMuon: the polar factor of the momentum's signs, each entry in units of its own size.

    O = polar(sign(M)),   v <- b v + (1 - b) O o O,   U = O / (sqrt(v) + eps)
    W <- (1 - lr wd) W - lr U 0.2 sqrt(m n) / |U|_F

Signs make the polar factor blind to the sizes of entries; the second moment is that of the update.

Source: "AdaMuon" (2025), arXiv 2507.11005; its algorithm known at second hand.
Deviations: eps is relative to the root mean square of sqrt(v). The second moment's decay is a
number of the rule, where the paper takes the momentum's. EMA or heavy ball have the same signs.
"""

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.sign import Sign
from polarlight.linalg.slot import MatrixMap
from polarlight.rule import UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.stages.momentum import EMA
from polarlight.stages.renormalise import MatchRms
from polarlight.stages.scales import Unscaled
from polarlight.stages.second_moment import EntrySecondMoment


@registered_rule(lr=4e-3, about="polar factor of signs, over its entries' rms")
def adamuon(
    *,
    beta2: float = 0.95,
    rms: float = 0.2,
    nesterov: bool = False,
    polar: MatrixMap = AutoPolar(),
) -> UpdateRule:
    """AdaMuon; see the module docstring for the mathematics.

    Args:
        beta2: Decay of the update's second moment, in [0, 1).
        rms: Root mean square entry of the update.
        nesterov: Look one step ahead.
        polar: The polar method.
    """
    return UpdateRule(
        name="adamuon",
        momentum=EMA(nesterov),
        balance=Sign(),
        map=polar,
        post=(EntrySecondMoment(beta2), MatchRms(rms)),
        scale=Unscaled(),
    )
