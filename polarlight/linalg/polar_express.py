"""Polar Express: the odd quintics whose composition is closest to 1 on [lower, 1].

Each step is the best approximation of 1 on the interval that the steps before it have left, which
makes the composition the best of all compositions of that many quintics.

Source: Amsel, Persson, Musco, Gower, "The Polar Express" (2025), arXiv 2505.16932, algorithm 1 and
section 3 (Remez iteration, cushion, safety factor).
Deviations: none in the coefficients (held to the published table to 1e-8).
"""

from functools import lru_cache

import torch

from polarlight.linalg.coefficients import Quintic, Schedule

CUSHION = 0.02407327424182761
"""No step is designed for an interval whose ends have a smaller ratio (the paper's code)."""

_NEARLY_ONE = 1 - 5e-6


@lru_cache
def polar_express(
    steps: int = 5, *, lower: float = 1e-3, safety: float = 1.01, cushion: float = CUSHION
) -> Schedule:
    """Polar Express coefficients for singular values in [lower, 1] of the normalised matrix.

    Args:
        steps: Number of quintics, at least 1.
        lower: Smallest sigma / norm that is to arrive at 1; in (0, 1). Smaller values stay on the
            way.
        safety: Every polynomial but the last is stretched by this factor, and the input is divided
            by it, so that rounding cannot push a singular value out of the interval. At least 1.
        cushion: A step is designed for [max(lower, cushion * upper), upper] and then recentred: a
            slightly worse bound for a map that treats the values in between evenly. In [0, 1).

    Raises:
        ValueError: If an argument is outside the range above.

    Accuracy: 5 steps at lower 1e-3 map [1e-3, 1] into [0.85, 1.13].
    """
    _check(steps, lower, safety, cushion)
    low, high = lower, 1.0
    polynomials: list[Quintic] = []
    for _ in range(steps):
        p = _recentred(best_quintic(max(low, cushion * high), high), low, high)
        polynomials.append(p)
        low = _evaluate(p, low)
        high = 2 - low
    *first, last = polynomials
    return Schedule(
        name=f"polar express x{steps}",
        steps=(*((a / safety, b / safety**3, c / safety**5) for a, b, c in first), last),
        safety=safety,
        source=f"arXiv 2505.16932, generated for lower={lower:g}",
    )


def best_quintic(low: float, high: float) -> Quintic:
    """The odd quintic closest to 1 on [low, high], by Remez iteration in float64."""
    if low >= _NEARLY_ONE * high:  # Pade limit: three derivatives vanish at `high`
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    inner = (0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high)
    previous = float("inf")
    for _ in range(100):
        a, b, c, error = _alternating((low, *inner, high))
        if abs(error - previous) <= 1e-15:
            break
        previous = error
        inner = _stationary_points(a, b, c)
    return a, b, c


def _alternating(points: tuple[float, ...]) -> tuple[float, float, float, float]:
    """(a, b, c, E) with p - 1 = -E, +E, -E, +E at the four points."""
    x = torch.tensor(points, dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    system = torch.stack([x, x**3, x**5, signs], dim=1)
    a, b, c, error = torch.linalg.solve(system, torch.ones_like(x)).tolist()
    return a, b, c, error


def _stationary_points(a: float, b: float, c: float) -> tuple[float, float]:
    """The two positive roots of a + 3 b x^2 + 5 c x^4, smaller first."""
    root = (9 * b * b - 20 * a * c) ** 0.5
    return ((-3 * b - root) / (10 * c)) ** 0.5, ((-3 * b + root) / (10 * c)) ** 0.5


def _recentred(p: Quintic, low: float, high: float) -> Quintic:
    """`p` scaled so that its values at both ends lie equally far from 1."""
    factor = 2 / (_evaluate(p, low) + _evaluate(p, high))
    return p[0] * factor, p[1] * factor, p[2] * factor


def _evaluate(p: Quintic, x: float) -> float:
    a, b, c = p
    return x * (a + x * x * (b + x * x * c))


def _check(steps: int, lower: float, safety: float, cushion: float) -> None:
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    if not 0 < lower < 1:
        raise ValueError(f"lower must lie in (0, 1), got {lower}")
    if not safety >= 1:
        raise ValueError(f"safety must be >= 1, got {safety}")
    if not 0 <= cushion < 1:
        raise ValueError(f"cushion must lie in [0, 1), got {cushion}")
