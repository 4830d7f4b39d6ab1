"""Shampoo: the averaged gradient between powers of two averaged Gram matrices.

    L <- b2 L + (1 - b2) G G',   R <- b2 R + (1 - b2) G' G,   M <- b1 M + (1 - b1) G
    W <- (1 - lr wd) W - lr L^(-1/4) M R^(-1/4)

With b1 = b2 = 0 this is the polar factor of the gradient, since (G G')^(-1/4) G (G' G)^(-1/4) =
U V': Muon without momentum. With b1 > 0 = b2 it is not Muon: the factors come from the gradient of
the moment, M from all of them.

Source: Gupta, Koren, Singer, "Shampoo" (2018), arXiv 1802.09568; averages and the identity: Anil
    et al. (2020), arXiv 2002.09018, Bernstein and Newhouse (2024), arXiv 2409.20325.
Deviations: averages instead of sums; a pseudo-inverse with a relative cutoff instead of an absolute
eps I; no grafting; powers in every step. A yardstick for tests and small models rather than a fast
method: two eigendecompositions per matrix and step.
"""

from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.stages.momentum import RawGradient
from polarlight.stages.scales import Unscaled
from polarlight.stages.shampoo import Shampoo


@registered_rule(lr=3e-3, about="gradient between inverse roots of its Gram averages")
def shampoo(
    *,
    betas: tuple[float, float] = (0.95, 0.95),
    exponent: float = -0.25,
    scale: Scale = Unscaled(),
) -> UpdateRule:
    """Shampoo with decay rates of the mean and of the factors, and the power of the latter."""
    return UpdateRule(
        name="shampoo", momentum=RawGradient(), map=Shampoo(betas, exponent), scale=scale
    )
