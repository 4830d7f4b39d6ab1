"""Grafted Shampoo: Shampoo's direction at the size of Adam's.

    L <- sb L + (1 - sb) G G',   R likewise,   M, V Adam's moments with bias corrections M^, V^
    S = L^(-1/4) M^ R^(-1/4),   A = M^ / (sqrt(V^) + eps),   W <- (1 - lr wd) W - lr S |A| / |S|

Powers are taken every `every` steps; until the first ones, the direction is Adam's.

Source: Gupta et al. (2018), arXiv 1802.09568; grafting: Anil et al. (2020), arXiv 2002.09018; the
    numbers of results 21 and 35 of modded-nanogpt's track 3.
Deviations: powers are those of the pseudo-inverse with a relative cut-off, where result 21 shifts
eigenvalues and adds 1e-12; eps is relative. The log of result 35, "one-sided" by its name, keeps
both sides at -1/4, and so does this. Betas belong to the rule; `momentum` is not used.
"""

from polarlight.lookup import check_fraction
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.stages.grafted_shampoo import GraftedShampoo
from polarlight.stages.momentum import RawGradient
from polarlight.stages.scales import Unscaled


@registered_rule(lr=3e-3, about="Shampoo's direction at Adam's size")
def grafted_shampoo(
    *,
    betas: tuple[float, float] = (0.9, 0.95),
    shampoo_beta: float = 0.95,
    exponent: float = -0.25,
    every: int = 1,
    floor: float | None = None,
    scale: Scale = Unscaled(),
) -> UpdateRule:
    """Grafted Shampoo; see the module docstring for the mathematics.

    Args:
        betas: Decay of Adam's two moments, in [0, 1).
        shampoo_beta: Decay of the factors, in [0, 1).
        exponent: Power of each factor.
        every: Steps between two computations of the powers; result 21 has 5, result 35 has 1.
        floor: Eigenvalues up to this fraction of the largest count as zero; None as in `Shampoo`.
        scale: Factor from (fan_out, fan_in).
    """
    check_fraction("shampoo_beta", shampoo_beta)
    map_ = GraftedShampoo(betas[0], shampoo_beta, betas[1], exponent, every, floor)
    return UpdateRule(name="grafted_shampoo", momentum=RawGradient(), map=map_, scale=scale)
