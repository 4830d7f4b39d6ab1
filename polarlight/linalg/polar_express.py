"""Polar Express: the odd polynomials whose composition is closest to 1 on [lower, 1].

Each step is the best approximation of 1 on the interval that the steps before it have left, which
makes the composition the best of all compositions of that many polynomials of that degree.

Source: Amsel, Persson, Musco, Gower, "The Polar Express" (2025), arXiv 2505.16932, algorithm 1 and
section 3 (closed form of the cubics, Remez iteration, cushion, safety factor).
Deviations: none in the coefficients (held to the published tables to 1e-8). Which polynomial is
left unstretched differs below eight steps: see `polar_express_listing`.
"""

from dataclasses import replace
from functools import lru_cache

import torch

from polarlight.linalg.coefficients import Quintic, Schedule, stretched

CUSHION = 0.02407327424182761
"""No step is designed for an interval whose ends have a smaller ratio (the paper's code)."""

_LOWER = 1e-3
_SAFETY = 1.01
_NEARLY_ONE = 1 - 5e-6


@lru_cache
def polar_express(
    steps: int = 5,
    *,
    lower: float = _LOWER,
    safety: float = _SAFETY,
    cushion: float = CUSHION,
    degree: int = 5,
    anticipate: bool = False,
) -> Schedule:
    """Polar Express coefficients for singular values in [lower, 1] of the normalised matrix.

    Args:
        steps: Number of polynomials, at least 1.
        lower: Smallest sigma / norm that is to arrive at 1; in (0, 1). Smaller values stay on the
            way.
        safety: Every polynomial but the last is stretched by this factor, and the input is divided
            by it, so that rounding cannot push a singular value out of the interval. At least 1.
        cushion: A step is designed for [max(lower, cushion * upper), upper] and then recentred: a
            slightly worse bound for a map that treats the values in between evenly. In [0, 1).
        degree: 5 (three products per step) or 3 (two).
        anticipate: Whether a step is designed for the values that the stretched steps before it
            deliver (modded-nanogpt) or for those of the unstretched ones (the paper's code).

    Raises:
        ValueError: If an argument is outside the range above.

    Accuracy: 5 steps at lower 1e-3 map [1e-3, 1] into [0.85, 1.13]. Without safety and cushion the
    error is at most (1 - lower^2)^(((degree + 1) / 2)^steps).
    """
    _check(steps, lower, safety, cushion, degree)
    best = best_quintic if degree == 5 else best_cubic
    low, high = lower, 1.0
    polynomials: list[Quintic] = []
    for _ in range(steps):
        p = _recentred(best(max(low, cushion * high), high), low, high)
        polynomials.append(p)
        low = _evaluate(p, low / safety if anticipate else low)
        high = 2 - low
    name = "polar express" if degree == 5 else "cubic polar express"
    bound = "" if lower == _LOWER else f" from {lower:g}"
    margin = "" if safety == _SAFETY else f", safety {safety:g}"
    return Schedule(
        name=f"{name} x{steps}{bound}{margin}",
        steps=stretched(tuple(polynomials), safety),
        safety=safety,
        source=f"arXiv 2505.16932, generated for lower={lower:g}",
    )


def polar_express_listing(steps: int = 5) -> Schedule:
    """Return the first `steps` polynomials of the paper's own listing, stretched as there.

    The listing stretches the first seven of its eight polynomials, so that fewer than eight steps
    end with a stretched one. `polar_express(steps)` leaves its last polynomial as it is, as the
    five-step table in circulation does. Beyond eight steps the eighth is repeated.

    Raises:
        ValueError: If `steps` is less than 1.

    Accuracy: 5 steps map [1e-3, 1] into [0.84, 1.13], 6 into [0.993, 1.002]; `polar_express` into
    [0.846, 1.13] and [0.994, 1.002]. From 8 steps on the two agree to rounding.
    """
    full = polar_express(8)
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    return replace(
        full,
        name=f"polar express listing x{steps}",
        steps=(*full.steps[:steps], *full.steps[-1:] * (steps - 8)),
    )


def best_cubic(low: float, high: float) -> Quintic:
    """The odd cubic closest to 1 on [low, high], in closed form."""
    alpha = (3 / (high * high + low * high + low * low)) ** 0.5
    beta = 4 / (2 + low * high * (low + high) * alpha**3)
    return 1.5 * alpha * beta, -0.5 * alpha**3 * beta, 0.0


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
    x = torch.tensor(points, dtype=torch.float64, device="cpu")
    signs = x.new_tensor([1.0, -1.0, 1.0, -1.0])
    system = torch.stack([x, x**3, x**5, signs], dim=1)
    a, b, c, error = torch.linalg.solve(system, torch.ones_like(x)).tolist()
    return a, b, c, error


def _stationary_points(a: float, b: float, c: float) -> tuple[float, float]:
    """The two positive roots of a + 3 b x^2 + 5 c x^4, smaller first."""
    root = (9 * b * b - 20 * a * c) ** 0.5
    return ((-3 * b - root) / (10 * c)) ** 0.5, ((-3 * b + root) / (10 * c)) ** 0.5


def _recentred(p: Quintic, low: float, high: float) -> Quintic:
    """`p` scaled so that its least value, at `low`, and its greatest lie equally far from 1."""
    greatest = _evaluate(p, high if p[2] else (-p[0] / (3 * p[1])) ** 0.5)
    factor = 2 / (_evaluate(p, low) + greatest)
    return p[0] * factor, p[1] * factor, p[2] * factor


def _evaluate(p: Quintic, x: float) -> float:
    a, b, c = p
    return x * (a + x * x * (b + x * x * c))


def _check(steps: int, lower: float, safety: float, cushion: float, degree: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    if not 0 < lower < 1:
        raise ValueError(f"lower must lie in (0, 1), got {lower}")
    if not safety >= 1:
        raise ValueError(f"safety must be >= 1, got {safety}")
    if not 0 <= cushion < 1:
        raise ValueError(f"cushion must lie in [0, 1), got {cushion}")
    if degree not in (3, 5):
        raise ValueError(f"degree must be 3 or 5, got {degree}")


MODDED_NANOGPT = replace(
    polar_express(5, safety=1.02, cushion=0.02, anticipate=True),
    name="modded-nanogpt x5",
    source="modded-nanogpt (2025): Polar Express, cushion 0.02, safety 1.02",
)
"""Above 1e-3 within [0.84, 1.15]; the generated table equals the published one to 1e-9."""
