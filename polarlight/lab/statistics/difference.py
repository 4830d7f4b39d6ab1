"""Difference of two arms over seeds: estimate, interval, tests, equivalence, smallest effect.

Arms of one experiment share seeds: a seed fixes initial weights, data order and evaluation data.
Comparisons are therefore on differences per seed,

    d_s = sum_i w_i x_{i,s},   estimate = mean d,   error = sd(d) / sqrt(n),   t = estimate / error

with n - 1 degrees of freedom. Runs without common seeds are compared by Welch's t.

Sources: Student (1908), Biometrika 6, 1; Welch (1947), Biometrika 34, 28; Fisher, The Design of
Experiments (1935), section 21, for sign flips; Schuirmann (1987), J. Pharmacokinet. Biopharm. 15,
657, for the two one-sided tests of equivalence.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean, stdev, variance

from polarlight.lab.statistics.student import cdf, quantile, two_sided_p

LEVEL = 0.05
"""Two-sided error rate of every verdict, before corrections."""

POWER = 0.8
"""Power at which effects are called detectable."""

FEWEST_FLIPS = 6
"""Seeds from which on sign flips can reach p < 0.05 with room: the least p is 2^(1-n)."""

MOST_ENUMERATED = 12
"""Seeds up to which all 2^n sign flips are counted; beyond, `DRAWN_FLIPS` are drawn."""

DRAWN_FLIPS = 10_000

MOST_SEEDS = 1000
"""Numbers of seeds from here on are not suggested."""

BySeed = Mapping[int, float]
"""One number per seed."""


@dataclass(frozen=True, slots=True)
class MeanDifference:
    """Estimated difference with its standard error.

    Attributes:
        estimate: Mean difference, in the unit of the measure.
        error: Standard error, in the same unit; None with one seed, where nothing follows.
        freedom: Degrees of freedom of the error; 0 with one seed.
        n: Seeds per arm; of unpaired arms the smaller number.
        paired: Whether both arms share the seeds.
        flips: Two-sided p of sign flips against zero; None for fewer than 6 seeds, or unpaired.

    Examples:
        >>> found = paired({0: 1.70, 1: 1.72, 2: 1.71}, {0: 1.60, 1: 1.63, 2: 1.62})
        >>> round(found.estimate, 4), found.n
        (0.0933, 3)
        >>> low, high = found.interval()
        >>> round(low, 3), round(high, 3)
        (0.079, 0.108)
    """

    estimate: float
    error: float | None
    freedom: float
    n: int
    paired: bool = True
    flips: float | None = None

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the two-sided interval of confidence 1 - level; infinite with one seed."""
        if self.error is None:
            return -math.inf, math.inf
        reach = quantile(1 - level / 2, self.freedom) * self.error
        return self.estimate - reach, self.estimate + reach

    def p(self, against: float = 0.0) -> float:
        """Return the two-sided p of t against a value; 1 with one seed.

        Without any spread between seeds p is 0, or 1 if the estimate is the value itself.
        """
        if self.error is None:
            return 1.0
        if self.error == 0:
            return 1.0 if self.estimate == against else 0.0
        return two_sided_p((self.estimate - against) / self.error, self.freedom)

    def p_equivalent(self, margin: float) -> float:
        """Return the p of equality to within a margin: the larger of two one-sided ones.

        p < 0.05 says that the 90 % interval lies inside (-margin, margin).

        Raises:
            ValueError: If margin is not positive.
        """
        if not margin > 0:
            raise ValueError(f"margin must be > 0, got {margin}")
        if self.error is None:
            return 1.0
        distance = margin - abs(self.estimate)
        if self.error == 0:
            return 0.0 if distance > 0 else 1.0
        return cdf(-distance / self.error, self.freedom)

    def detectable(self, level: float = LEVEL, power: float = POWER) -> float:
        """Return the smallest effect that this many seeds find with the given power.

            (t_{v, 1 - level / 2} + t_{v, power}) error

        Infinite with one seed. The spread between seeds is taken from the seeds themselves.
        """
        if self.error is None:
            return math.inf
        factor = quantile(1 - level / 2, self.freedom) + quantile(power, self.freedom)
        return factor * self.error

    def provable_margin(self, level: float = LEVEL, power: float = POWER) -> float:
        """Return the smallest margin within which equal arms are shown equal with this power.

            (t_{v, 1 - level} + t_{v, (1 + power) / 2}) error

        Infinite with one seed.
        """
        if self.error is None:
            return math.inf
        factor = quantile(1 - level, self.freedom) + quantile((1 + power) / 2, self.freedom)
        return factor * self.error

    def seeds_for(self, effect: float, level: float = LEVEL, power: float = POWER) -> int | None:
        """Return how many seeds find an effect with this power, at the spread seen so far.

        None with one seed, for an effect of zero, or where 1000 or more would be needed.
        """
        if self.error is None or effect == 0:
            return None
        scatter = self.error * math.sqrt(self.n)

        def shortfall(n: int) -> float:
            return abs(effect) - detectable_at(n, level, power) * scatter

        n = 2 + bisect_left(range(2, MOST_SEEDS), 0.0, key=shortfall)
        return n if n < MOST_SEEDS else None


def detectable_at(n: int, level: float = LEVEL, power: float = POWER) -> float:
    """Return the detectable effect of n seeds, in standard deviations of a difference.

    Examples:
        >>> round(detectable_at(4), 2)
        2.08
    """
    return (quantile(1 - level / 2, n - 1) + quantile(power, n - 1)) / math.sqrt(n)


def from_differences(differences: Sequence[float]) -> MeanDifference:
    """Return the summary of differences per seed.

    Raises:
        ValueError: If there are none or one of them is not finite.
    """
    values = list(differences)
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"a difference takes one finite number per seed or more, got {values}")
    n = len(values)
    error = stdev(values) / math.sqrt(n) if n > 1 else None
    flips = sign_flip_p(values) if n >= FEWEST_FLIPS else None
    return MeanDifference(fmean(values), error, n - 1, n, flips=flips)


def paired(first: BySeed, second: BySeed) -> MeanDifference:
    """Return first minus second over the seeds that both have.

    Raises:
        ValueError: If they share no seed, or a difference is not finite.
    """
    return contrast({"first": 1.0, "second": -1.0}, {"first": first, "second": second})


def contrast(weights: Mapping[str, float], samples: Mapping[str, BySeed]) -> MeanDifference:
    """Return a weighted sum of arms, taken per seed over the seeds that all of them have.

    Args:
        weights: By arm, at least one.
        samples: By arm: one number per seed.

    Raises:
        ValueError: If the arms share no seed, or a sum is not finite.

    Examples:
        >>> gain = contrast({"a": 1.0, "b": -1.0}, {"a": {0: 2.0, 1: 2.5}, "b": {0: 1.0, 1: 1.0}})
        >>> gain.estimate
        1.25
    """
    common = set.intersection(*(set(samples[arm]) for arm in weights))
    if not common:
        raise ValueError(f"arms {', '.join(weights)} share no seed; compare them unpaired")
    return from_differences(
        [math.fsum(w * samples[a][seed] for a, w in weights.items()) for seed in sorted(common)]
    )


def welch(first: Sequence[float], second: Sequence[float]) -> MeanDifference:
    """Return first minus second of unpaired runs, with Welch's degrees of freedom.

    Raises:
        ValueError: If one of them is empty or a number is not finite.

    Examples:
        >>> found = welch([1.0, 2.0, 3.0], [2.0, 4.0])
        >>> found.estimate, round(found.freedom, 3)
        (-1.0, 1.684)
    """
    a, b = list(first), list(second)
    if not a or not b or not all(map(math.isfinite, a + b)):
        raise ValueError(f"Welch's t takes finite numbers of both arms, got {a} and {b}")
    estimate, n = fmean(a) - fmean(b), min(len(a), len(b))
    if n < 2:
        return MeanDifference(estimate, None, 0, n, paired=False)
    u, v = variance(a) / len(a), variance(b) / len(b)
    if u + v == 0:
        return MeanDifference(estimate, 0.0, len(a) + len(b) - 2, n, paired=False)
    freedom = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
    return MeanDifference(estimate, math.sqrt(u + v), freedom, n, paired=False)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the two-sided permutation p of a mean of zero, by flips of signs.

    All 2^n flips up to n = 12; beyond, 10,000 drawn with a fixed seed, with the observed one
    counted among them (Phipson and Smyth, 2010, arXiv 1603.05766).

    Raises:
        ValueError: If there are no differences.

    Examples:
        >>> sign_flip_p([1.0, 2.0, 3.0])
        0.25
    """
    if not differences:
        raise ValueError("sign flips take one difference or more, got none")
    limit = abs(math.fsum(differences)) - 1e-12 * math.fsum(map(abs, differences))
    n = len(differences)
    if n <= MOST_ENUMERATED:
        first, *others = differences  # the flip of all signs has the same distance from zero
        sums = [
            math.fsum([first, *(s * d for s, d in zip(signs, others, strict=True))])
            for signs in product((1, -1), repeat=n - 1)
        ]
        return sum(abs(x) >= limit for x in sums) / len(sums)
    draw = random.Random(0)
    drawn = (
        math.fsum(d if draw.random() < 0.5 else -d for d in differences) for _ in range(DRAWN_FLIPS)
    )
    return (1 + sum(abs(x) >= limit for x in drawn)) / (1 + DRAWN_FLIPS)
