"""Muon^2: the polar factor of the momentum over the gradient's root mean square.

    V <- b2 V + (1 - b2) G o G,   U = polar(N / (sqrt(V) + eps)),   N the Nesterov momentum
    W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) U

Adam's second moment evens out the entries before Newton-Schulz, as in PolarAdamW, but the momentum
is Muon's and looks ahead.

Source: "Muon^2" (2026), arXiv 2604.09967, as result 7 of modded-nanogpt's track 3 has it.
Deviations: eps is a fraction of the root mean square of sqrt(V), not an absolute 1e-10.
"""

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.slot import MatrixMap
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.stages.gradient_moment import GradientSecondMoment
from polarlight.stages.momentum import EMA
from polarlight.stages.scales import Original


@registered_rule(lr=0.02, about="polar factor of the momentum over the gradient's rms")
def muon_squared(
    *,
    beta2: float = 0.95,
    eps: float = 1e-8,
    nesterov: bool = True,
    polar: MatrixMap = AutoPolar(),
    scale: Scale = Original(),
) -> UpdateRule:
    """Muon^2; see the module docstring for the mathematics.

    Args:
        beta2: Decay of the gradient's second moment, in [0, 1).
        eps: Floor under its root, as a fraction of the root mean square.
        nesterov: Look one step ahead.
        polar: The polar method.
        scale: Factor from (fan_out, fan_in).
    """
    balance = GradientSecondMoment(beta2, eps)
    return UpdateRule(
        name="muon_squared", momentum=EMA(nesterov), balance=balance, map=polar, scale=scale
    )
