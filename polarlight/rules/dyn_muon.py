"""DynMuon: a polar factor bent towards a power of the singular values that moves with the steps.

    X = N / |N|,   E = X X' - I,   U = |N|^p (I + (p/2) E + (p/2)(p/2 - 1)/2 E^2) polar(N)
    p(t) = -1/4 + 1/2 / (1 + exp((t - 0.04 T) / (0.04 T)))
    W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) U

Small singular values come out near 1 - p/2 + (p/2)(p/2 - 1)/2 of the polar factor, so that the
method is nearly Muon.

Source: "DynMuon" (2026), arXiv 2605.17109, as result 28 of modded-nanogpt's track 3 has it:
    T = 3200, heavy ball with Nesterov.
Deviations: |N|^p is left out, so that the scale of the gradients cancels; `unit` brings it back.
`middle` and `width` are in steps (0.04 T each).
"""

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.slot import MatrixMap
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.stages.dynamic_power import DynamicPower
from polarlight.stages.momentum import HeavyBall
from polarlight.stages.ramp import Logistic, Number
from polarlight.stages.scales import Original


@registered_rule(lr=0.02, about="polar factor bent by a power that moves with the steps")
def dyn_muon(
    *,
    power: Number = Logistic(0.25, -0.25, middle=128, width=128),
    unit: float | None = None,
    nesterov: bool = True,
    polar: MatrixMap = AutoPolar(),
    scale: Scale = Original(),
) -> UpdateRule:
    """DynMuon; see the module docstring for the mathematics.

    Args:
        power: The power p, or how it moves with the steps.
        unit: Norm of the momentum at which |N|^p counts as 1; None leaves the factor out.
        nesterov: Look one step ahead.
        polar: The polar method.
        scale: Factor from (fan_out, fan_in).
    """
    bent = DynamicPower(power, polar, unit)
    return UpdateRule(name="dyn_muon", momentum=HeavyBall(nesterov), map=bent, scale=scale)
