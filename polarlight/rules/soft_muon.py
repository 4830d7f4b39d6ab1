"""Soft-Muon: a weighted sum of Newton-Schulz iterates in place of the last one.

    S = sum_k c_k X_k at the Schatten-4 norm of a polar factor,   about s^0.1 above 0.01 of |N|_4
    W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) S

`contra_soft_muon` goes from Contra-Muon's direction C to S:   U = (C + b (S - C)) at the size of C.

Source: nilin.github.io/contra-muon-and-soft-muon (2026); weights and interpolation of result 20 of
    modded-nanogpt's track 3.
Deviations: the size is that of an exact polar factor. `b` defaults to 0.5, where the result lets it
grow to 0.8 over its last 500 steps: `Ramp(0.0, 0.8, 2500, 2908)`.
"""

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.slot import MatrixMap
from polarlight.linalg.weighted_iterates import WeightedIterates
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.stages.interpolated import Contra, Interpolated
from polarlight.stages.momentum import EMA
from polarlight.stages.ramp import Number
from polarlight.stages.scales import Original


@registered_rule(lr=0.02, about="weighted sum of Newton-Schulz iterates")
def soft_muon(
    *,
    iterates: WeightedIterates = WeightedIterates(),
    nesterov: bool = True,
    scale: Scale = Original(),
) -> UpdateRule:
    """Soft-Muon; see the module docstring for the mathematics.

    Args:
        iterates: The weighted sum.
        nesterov: Look one step ahead.
        scale: Factor from (fan_out, fan_in).
    """
    return UpdateRule(name="soft_muon", momentum=EMA(nesterov), map=iterates, scale=scale)


@registered_rule(lr=0.02, about="between Contra-Muon and Soft-Muon")
def contra_soft_muon(
    *,
    weight: Number = 0.5,
    contra: Number = 0.2,
    iterates: WeightedIterates = WeightedIterates(),
    nesterov: bool = True,
    polar: MatrixMap = AutoPolar(),
    scale: Scale = Original(),
) -> UpdateRule:
    """Contra-Muon led towards Soft-Muon; see the module docstring for the mathematics.

    Args:
        weight: The part b of the way, or a `Ramp` of it over the steps.
        contra: The fraction of the normalised momentum that is subtracted first, or a `Ramp`.
        iterates: The weighted sum.
        nesterov: Look one step ahead.
        polar: The polar method.
        scale: Factor from (fan_out, fan_in).
    """
    map_ = Interpolated(Contra(polar, contra), iterates, weight)
    return UpdateRule(name="contra_soft_muon", momentum=EMA(nesterov), map=map_, scale=scale)
