"""Contra-Muon: the polar factor minus a fraction of the normalised momentum, at its own size.

    O = polar(N),   C = O - c N / op(N),   U = C |O|_4 / |C|_4,   |X|_4 = |X X'|_F^(1/2)
    W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) U

N is the same momentum twice, so this is a map of one matrix: singular values 1 - c s / s_1 before
resizing. The largest direction shrinks most.

Source: nilin/contra-muon (2026); results 11 and 20 of modded-nanogpt's track 3.
Deviations: op is |N|_4, as from result 20 on; `norm=PowerIterationNorm(5)` and `size=Frobenius()`
are result 11's. No absolute floors.
"""

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.normalisation import Schatten4
from polarlight.linalg.slot import MatrixMap
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.stages.interpolated import Contra, Divisor
from polarlight.stages.momentum import EMA
from polarlight.stages.ramp import Number
from polarlight.stages.scales import Original


@registered_rule(lr=0.02, about="polar factor minus a part of the momentum")
def contra_muon(
    *,
    contra: Number = 0.2,
    norm: Divisor = Schatten4(),
    size: Divisor = Schatten4(),
    nesterov: bool = True,
    polar: MatrixMap = AutoPolar(),
    scale: Scale = Original(),
) -> UpdateRule:
    """Contra-Muon; see the module docstring for the mathematics.

    Args:
        contra: The fraction c, or a `Ramp` of it over the steps.
        norm: What divides the momentum.
        size: The norm of the polar factor that is kept.
        nesterov: Look one step ahead.
        polar: The polar method.
        scale: Factor from (fan_out, fan_in).
    """
    bent = Contra(polar, contra, norm, size)
    return UpdateRule(name="contra_muon", momentum=EMA(nesterov), map=bent, scale=scale)
