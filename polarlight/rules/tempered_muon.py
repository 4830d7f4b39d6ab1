"""Tempered polar factor: led a little towards the normalised momentum.

    O = polar(N),   Y = N / |N|_4 - O,   T = O + rho Y min(1, 0.25 |O|_4 / |Y|_4)
    W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) T |O|_4 / |T|_4

The opposite of Contra-Muon: the largest directions keep more of their size.

Source: result 38 of modded-nanogpt's track 3 (2026), "Tempered-Polar"; not tested alone there.
Deviations: rho is constant by default, where the result lets it grow to 0.05 over steps 2600 to
2800: `Ramp(0.0, 0.05, 2600, 2800)`. No absolute floors.
"""

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.slot import MatrixMap
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.stages.interpolated import Interpolated, Normalised
from polarlight.stages.momentum import EMA
from polarlight.stages.ramp import Number
from polarlight.stages.scales import Original


@registered_rule(lr=0.02, about="polar factor led towards the momentum")
def tempered_muon(
    *,
    rho: Number = 0.05,
    most: float = 0.25,
    nesterov: bool = True,
    polar: MatrixMap = AutoPolar(),
    scale: Scale = Original(),
) -> UpdateRule:
    """Tempered polar factor; see the module docstring for the mathematics.

    Args:
        rho: The part of the way, or a `Ramp` of it over the steps.
        most: Largest difference, over the polar factor's size.
        nesterov: Look one step ahead.
        polar: The polar method.
        scale: Factor from (fan_out, fan_in).
    """
    tempered = Interpolated(polar, Normalised(), rho, most, name="tempered")
    return UpdateRule(name="tempered_muon", momentum=EMA(nesterov), map=tempered, scale=scale)
