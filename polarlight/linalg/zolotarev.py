"""Zolotarev's best rational approximations of the sign function, in floats on the host.

Among x P(x^2) / Q(x^2) of type (2r + 1, 2r), with l' = sqrt(1 - l^2) and K' = K(l'),

    Z(x) = C x prod_j (x^2 + c_2j) / (x^2 + c_2j-1),
    c_i = l^2 sc(i K' / (2r + 1); l')^2,        i = 1 .. 2r

is closest to 1 on [l, 1], and C is chosen here such that its greatest value there is 1. Two of them
in a row, the second for the interval that the first leaves, are again of this kind, with
(2r + 1)^2 in the place of 2r + 1.

Source: Nakatsukasa and Freund (2016), SIAM Review 58, 461.
Deviations: elliptic functions by transformations towards the hyperbolic limit, which keep full
relative accuracy for every l; r from the interval, not from a table.
"""

import math

from polarlight.linalg.lru_cache_eager import assume_constant, lru_cache_eager
from polarlight.linalg.rational import RationalStep, polished

MOST_TERMS = 8
"""Enough for [1e-25, 1] in float64."""


@assume_constant
@lru_cache_eager
def two_zolotarev_steps(
    lower: float, terms: int | None, accuracy: float
) -> tuple[RationalStep, RationalStep]:
    """Two steps for [lower, 1], of `terms` terms each or the fewest that leave `accuracy`.

    Raises:
        ValueError: If 8 terms do not suffice.
    """
    for r in [terms] if terms else range(1, MOST_TERMS + 1):
        first = zolotarev(lower, r)
        middle = min(first(lower), 1.0)
        second = zolotarev(middle, r)
        if terms or 1 - polished(second(middle)) <= accuracy:
            return first, second
    raise ValueError(f"two steps of {MOST_TERMS} terms do not reach {accuracy} from lower={lower}")


def zolotarev(lower: float, terms: int) -> RationalStep:
    """The best approximation of 1 on [lower, 1] by `terms` terms, scaled to at most 1."""
    nodes = _nodes(lower, terms)
    zeros, poles = nodes[1::2], nodes[::2]
    weights = [
        math.prod(zero - pole for zero in zeros)
        / math.prod(other - pole for other in poles if other != pole)
        for pole in poles
    ]
    at_one = 1 + sum(w / (1 + pole) for w, pole in zip(weights, poles, strict=True))
    pairs = zip(weights, poles, strict=True)
    return RationalStep(1 / at_one, tuple((w / at_one, pole) for w, pole in pairs))


def _nodes(lower: float, terms: int) -> list[float]:
    """c_1 .. c_2r, ascending. The upper half mirrors the lower: c_i c_(2r+1-i) = l^2."""
    if lower >= 1 - 1e-8:  # the limit: type (2r + 1, 2r) of the tangent
        return [math.tan(i * math.pi / (4 * terms + 2)) ** 2 for i in range(1, 2 * terms + 1)]
    period = complete_elliptic(lower)
    half = [
        (lower * tangent(i * period / (2 * terms + 1), lower)) ** 2 for i in range(1, terms + 1)
    ]
    return half + [lower**2 / c for c in reversed(half)]


def complete_elliptic(complement: float) -> float:
    """K(k) for the complementary modulus sqrt(1 - k^2), by the arithmetic-geometric mean."""
    a, b = 1.0, complement
    while abs(a - b) > 1e-15 * a:
        a, b = (a + b) / 2, math.sqrt(a * b)
    return math.pi / (2 * a)


def tangent(u: float, complement: float) -> float:
    """Jacobi's sc(u; k) = sn / cn for the complementary modulus sqrt(1 - k^2)."""
    sn, cn, _ = _jacobi(u, complement)
    return sn / cn


def _jacobi(u: float, complement: float) -> tuple[float, float, float]:
    """(sn, cn, dn), by steps towards k = 1, where they are hyperbolic."""
    if complement < 1e-16:
        return math.tanh(u), 1 / math.cosh(u), 1 / math.cosh(u)
    k = math.sqrt((1 - complement) * (1 + complement))
    smaller = (complement / (1 + k)) ** 2
    sn, cn, dn = _jacobi(u / (1 + smaller), smaller)
    return (
        (1 + smaller) * sn * cn / dn,
        (dn * dn - smaller) / ((1 - smaller) * dn),
        (dn * dn + smaller) / ((1 + smaller) * dn),
    )
