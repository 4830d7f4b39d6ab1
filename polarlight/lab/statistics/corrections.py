"""Corrections for several comparisons and for several looks at growing data.

Sources: Holm (1979), Scand. J. Statist. 6, 65; Dunnett (1955), J. Am. Stat. Assoc. 50, 1096; Pocock
(1977), Biometrika 64, 191.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch

from polarlight.lab.statistics.difference import LEVEL
from polarlight.lab.statistics.student import two_sided_p

LOOKS = (4, 8, 12, 16)
"""Numbers of seeds at which results are looked at, fixed in advance."""

POCOCK = (0.05, 0.0294, 0.0221, 0.0182, 0.0158)
"""Level at each of 1 to 5 equally spaced looks that keeps the error of all at 0.05."""

_DRAWS = 200_000


def holm(ps: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number by Holm's step-down rule, in the given order.

    An adjusted p below 0.05 keeps the chance of any false rejection among them below 0.05, whatever
    their dependence.

    Examples:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(ps)), key=ps.__getitem__)
    adjusted, largest = [0.0] * len(ps), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[index]))
        adjusted[index] = largest
    return adjusted


@lru_cache(maxsize=256)
def dunnett_level(comparisons: int, seeds: int, level: float = LEVEL) -> float:
    """Return the level of each of several paired comparisons with one reference arm.

    With it the chance that any of them is wrong is `level`, when all arms are alike. Each
    comparison has its own t with seeds - 1 degrees of freedom; arms have equal variances, so that
    two differences to the reference are correlated by 1/2, whatever the seeds have in common. Found
    by 200,000 simulated experiments with a fixed seed: relative accuracy 1 %, and never below the
    Bonferroni level.

    Args:
        comparisons: Arms beside the reference, at least 1.
        seeds: Seeds per arm, at least 2.
        level: Error rate of all comparisons together.

    Raises:
        ValueError: If a number is below its least.

    Examples:
        >>> dunnett_level(1, 4)
        0.05
        >>> 0.05 / 3 < dunnett_level(3, 4) < 0.05
        True
    """
    if comparisons < 1 or seeds < 2:
        raise ValueError(
            f"Dunnett's level takes comparisons >= 1 and seeds >= 2, got {comparisons} and {seeds}"
        )
    if comparisons == 1:
        return level
    generator = torch.Generator().manual_seed(0)
    largest = torch.cat([_largest_t(comparisons, seeds, generator) for _ in range(10)])
    critical = float(largest.quantile(1 - level))
    return max(two_sided_p(critical, seeds - 1), level / comparisons)


def _largest_t(comparisons: int, seeds: int, generator: torch.Generator) -> torch.Tensor:
    """Return the largest |t| of each simulated experiment without effects, [experiments]."""
    shape = (_DRAWS // 10, comparisons + 1, seeds)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    d = x[:, 1:] - x[:, :1]  # [experiments, comparisons, seeds]
    t: torch.Tensor = d.mean(dim=2) * seeds**0.5 / d.std(dim=2)
    return t.abs().amax(dim=1)


def pocock_level(looks: int) -> float:
    """Return the level at every look that keeps the error rate of all looks at 0.05.

    Raises:
        ValueError: If looks is not 1 to 5.

    Examples:
        >>> pocock_level(3)
        0.0221
    """
    if not 1 <= looks <= len(POCOCK):
        raise ValueError(f"looks must be 1 to {len(POCOCK)}, got {looks}")
    return POCOCK[looks - 1]


def after_looks(p: float, looks: int) -> float:
    """Return a p value that is below 0.05 exactly where p is below Pocock's level.

    Examples:
        >>> round(after_looks(0.0221, 3), 4)
        0.05
    """
    return min(1.0, p * LEVEL / pocock_level(looks))
