"""Significance of differences: differences of means against the spread of seeds.

The statistic of a pair is

    (mean_1 - mean_2) / sqrt(1 / n_1 + 1 / n_2)

and is held against two pooled standard deviations, which assumes that seeds scatter equally for
every optimizer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

from polarlight.lab.train.report.groups import Group, best

LIMIT = 2.0


@dataclass(frozen=True, slots=True)
class Scatter:
    """Pooled standard deviation between seeds, and its degrees of freedom."""

    deviation: float
    freedom: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """One group against the best: difference of means and the statistic."""

    group: Group
    difference: float
    statistic: float

    def stands_out(self, scatter: Scatter) -> bool:
        """Tell whether the statistic exceeds two pooled standard deviations."""
        return self.statistic > LIMIT * scatter.deviation


def pooled(groups: Sequence[Group]) -> Scatter | None:
    """Return the spread between seeds over all groups; None without two losses in a group."""
    return pooled_deviation([group.losses for group in groups])


def pooled_deviation(samples: Sequence[Sequence[float]]) -> Scatter | None:
    """Return the spread within samples, pooled; None without two numbers in one."""
    several = [(stdev(sample), len(sample) - 1) for sample in samples if len(sample) > 1]
    freedom = sum(n for _, n in several)
    if not freedom:
        return None
    variance = sum(n * deviation**2 for deviation, n in several) / freedom
    return Scatter(math.sqrt(variance), freedom)


def against_best(groups: Sequence[Group]) -> list[Comparison]:
    """Compare every group with a final loss with the best one."""
    winner = best(groups)
    if winner is None or winner.loss is None:
        return []
    return [
        _compare(group, group.loss - winner.loss, winner)
        for group in groups
        if group is not winner and group.loss is not None
    ]


def _compare(group: Group, difference: float, winner: Group) -> Comparison:
    noise = math.sqrt(1 / len(group.losses) + 1 / len(winner.losses))
    return Comparison(group, difference, difference / noise)
