"""Student's t distribution: tail and quantile, without SciPy.

    P(|T| > t) = I_x(v/2, 1/2),   x = v / (v + t^2),   v degrees of freedom

with I the regularized incomplete beta function, by its continued fraction.

Source: NIST Digital Library of Mathematical Functions, 8.17(v), equations 8.17.22 and 8.17.23.
"""

import math
from functools import lru_cache

_TERMS = 500
_EPS = 1e-15
_TINY = 1e-300


def two_sided_p(t: float, freedom: float) -> float:
    """Return P(|T| >= |t|) for Student's t.

    Args:
        t: Any number; infinite gives 0.
        freedom: Degrees of freedom, positive; need not be whole. Infinite is the normal law.

    Returns:
        A probability, relative accuracy 1e-10 where it is above 1e-250.

    Raises:
        ValueError: If freedom is not positive or t is NaN.

    Examples:
        >>> round(two_sided_p(2.776, 4), 4)
        0.05
    """
    if not freedom > 0 or math.isnan(t):
        raise ValueError(f"Student's t takes freedom > 0 and a number t, got {freedom} and {t}")
    if math.isinf(t):
        return 0.0
    if math.isinf(freedom):
        return math.erfc(abs(t) / math.sqrt(2))
    whole = freedom + t * t
    return _incomplete_beta(freedom / 2, 0.5, freedom / whole, t * t / whole)


def cdf(t: float, freedom: float) -> float:
    """Return P(T <= t); arguments and errors as `two_sided_p`.

    Examples:
        >>> cdf(0.0, 3)
        0.5
    """
    tail = two_sided_p(t, freedom) / 2
    return 1 - tail if t > 0 else tail


@lru_cache(maxsize=4096)
def quantile(p: float, freedom: float) -> float:
    """Return the t with P(T <= t) = p, by bisection.

    Args:
        p: Probability strictly between 0 and 1.
        freedom: Degrees of freedom, positive.

    Returns:
        The quantile, relative accuracy 1e-10.

    Raises:
        ValueError: If p or freedom is outside its range.

    Examples:
        >>> round(quantile(0.975, 3), 4)
        3.1824
    """
    if not 0 < p < 1:
        raise ValueError(f"p must lie strictly between 0 and 1, got {p}")
    if p < 0.5:
        return -quantile(1 - p, freedom)
    tail = 2 * (1 - p)
    low, high = 0.0, 1.0
    while two_sided_p(high, freedom) > tail:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if two_sided_p(middle, freedom) > tail else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """Return I_x(a, b), rest = 1 - x, from the side on which its continued fraction is fast."""
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = math.exp(a * math.log(x) + b * math.log(rest) - log_beta)
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, rest) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction of I_x(a, b) by the modified method of Lentz.

    Source: Thompson and Barnett (1986), J. Comput. Phys. 64, 490.
    """
    value = numerator = 1.0
    denominator = 0.0
    for k in range(1, _TERMS):
        m = k // 2
        if k % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        denominator = 1 / _away_from_zero(1 + term * denominator)
        numerator = _away_from_zero(1 + term / numerator)
        value *= numerator * denominator
        if abs(numerator * denominator - 1) < _EPS:
            break
    return 1 / value


def _away_from_zero(x: float) -> float:
    return x if abs(x) > _TINY else _TINY
