"""Speedups from recorded losses: steps that tuned AdamW needs to reach a method's loss.

AdamW is trained at several lengths, each with its own schedule to the end. Its losses against
log(length) are interpolated by a monotone cubic; the speedup of a method at length L is the length
at which this curve reaches the method's loss, divided by L. Nothing is extrapolated: beyond AdamW's
longest run only a bound is given.

Intervals: seeds are resampled, the same for AdamW and the method, and the curve is computed anew.
The standard deviation s of log(speedup) over resamples gives

    speedup exp(+- t_{n-1, 0.975} s sqrt(n / (n - 1)))

since with n seeds resampling alone has (n - 1) / n of the variance and knows nothing of the few
degrees of freedom.

Sources: Fritsch and Butland (1984), SIAM J. Sci. Stat. Comput. 5, 300, for the cubic; Efron and
Tibshirani, An Introduction to the Bootstrap (1993), chapters 6 and 12.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from statistics import fmean, pstdev

from polarlight.lab.claims.speedup.plan import AUX_RATES, TUNING_SEED, GridPart
from polarlight.lab.claims.speedup.tuning import Losses, Numbers, TuningJob, tuned
from polarlight.lab.statistics import BySeed
from polarlight.lab.statistics.student import quantile

RESAMPLED = 2000
REFERENCE = "adamw"


@dataclass(frozen=True, slots=True)
class Speedup:
    """A method's speedup at one length.

    Attributes:
        method: Its name.
        length: Chinchilla budgets.
        ratio: AdamW's steps over the method's; a bound where `beyond` says so.
        low: Lower end of the 95 % interval; NaN with one seed.
        high: Upper end; infinite where the interval leaves AdamW's longest run.
        seeds: Seeds of both.
        beyond: "above" or "below" where the loss lies outside of AdamW's runs; else empty.
    """

    method: str
    length: float
    ratio: float
    low: float
    high: float
    seeds: int
    beyond: str = ""

    def __str__(self) -> str:
        at = f"{self.method} at {self.length:g} budgets"
        if self.beyond:
            return f"{at}: {self.beyond} {self.ratio:.2f} x, outside of AdamW's runs"
        if math.isnan(self.low):
            return f"{at}: {self.ratio:.2f} x (one seed)"
        high = "no upper end" if math.isinf(self.high) else f"{self.high:.2f}"
        return f"{at}: {self.ratio:.2f} x (95 % CI {self.low:.2f} to {high}, n = {self.seeds})"


def final_losses(part: GridPart, method: str, known: Losses) -> dict[float, BySeed]:
    """Return the losses of a method by length and seed, at its tuned numbers."""
    found = tuned(part, method, known)
    losses: dict[float, dict[int, float]] = {}
    for length in part.lengths_of(method):
        numbers = found.at(length)
        if numbers is None:
            continue
        jobs = [TuningJob(method, length, numbers, seed) for seed in range(part.seeds)]
        mine = {job.seed: known[job] for job in jobs if job in known}
        if mine:
            losses[length] = mine
    return dict(losses)


def speedups(part: GridPart, known: Losses) -> list[Speedup]:
    """Return every method's speedup at every length that has runs, AdamW's own left out."""
    base = final_losses(part, REFERENCE, known)
    if len(base) < 2:
        return []
    found = []
    for method in part.methods:
        if method != REFERENCE:
            for length, losses in final_losses(part, method, known).items():
                found.append(speedup(method, length, losses, base))
    return [one for one in found if one is not None]


def speedup(
    method: str, length: float, losses: BySeed, base: Mapping[float, BySeed]
) -> Speedup | None:
    """Return one speedup; None where AdamW and the method share no seed.

    Args:
        method: Its name.
        length: Of the method's runs, in budgets.
        losses: Its final losses.
        base: AdamW's final losses by length.

    Examples:
        >>> base = {1: {0: 2.0}, 2: {0: 1.8}, 4: {0: 1.6}}
        >>> round(speedup("muon", 1, {0: 1.8}, base).ratio, 6)
        2.0
    """
    seeds = sorted(set(losses).intersection(*map(set, base.values())))
    if not seeds:
        return None

    def log_ratio(drawn: Sequence[int]) -> tuple[float, str]:
        needed, beyond = _needed(losses, base, drawn)
        return math.log(needed / length), beyond

    value, beyond = log_ratio(seeds)
    low, high = _interval(log_ratio, seeds)
    return Speedup(method, length, math.exp(value), low, high, len(seeds), beyond)


@dataclass(frozen=True, slots=True)
class Fall:
    """Ratio of a method's speedup at its longest length to that at its shortest.

    Attributes:
        method: Its name.
        lengths: Both lengths, in budgets.
        ratio: Below 1 where the speedup falls.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    method: str
    lengths: tuple[float, float]
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        first, last = self.lengths
        return (
            f"{self.method}: speedup at {last:g} over that at {first:g} budgets {self.ratio:.2f} "
            f"(95 % CI {self.low:.2f} to {self.high:.2f})"
        )


def fall(part: GridPart, method: str, known: Losses) -> Fall | None:
    """Return how the speedup changes with length; None where it is not known at two lengths."""
    base, own = final_losses(part, REFERENCE, known), final_losses(part, method, known)
    if len(base) < 2 or len(own) < 2:
        return None
    first, last = min(own), max(own)
    seeds = sorted(set(own[first]).intersection(own[last], *map(set, base.values())))
    if len(seeds) < 2:
        return None

    def log_ratio(drawn: Sequence[int]) -> tuple[float, str]:
        long, beyond = _needed(own[last], base, drawn)
        short, also = _needed(own[first], base, drawn)
        return math.log(long / last) - math.log(short / first), beyond or also

    value, beyond = log_ratio(seeds)
    low, high = _interval(log_ratio, seeds)
    return None if beyond else Fall(method, (first, last), math.exp(value), low, high)


def _needed(
    losses: BySeed, base: Mapping[float, BySeed], drawn: Sequence[int]
) -> tuple[float, str]:
    """Return the length that AdamW needs for the mean loss of these seeds; see `length_for`."""
    curve = {x: fmean(found[s] for s in drawn) for x, found in base.items()}
    return length_for(fmean(losses[s] for s in drawn), curve)


def _interval(
    log_ratio: Callable[[Sequence[int]], tuple[float, str]], seeds: Sequence[int]
) -> tuple[float, float]:
    """Return the 95 % interval of the module docstring; NaN with one seed.

    An end is 0 or infinite where more than 2.5 % of the resamples leave AdamW's runs on its side.
    """
    n = len(seeds)
    if n < 2:
        return math.nan, math.nan
    if n**n <= RESAMPLED:
        drawn: Iterable[Sequence[int]] = product(seeds, repeat=n)
    else:
        draw = random.Random(0)
        drawn = (draw.choices(seeds, k=n) for _ in range(RESAMPLED))
    of_seeds = cache(log_ratio)  # in order: a sample counts for all of its permutations
    found = [of_seeds(tuple(sorted(one))) for one in drawn]
    outside = {side: sum(b == side for _, b in found) / len(found) for side in ("above", "below")}
    scatter = pstdev(value for value, _ in found) * math.sqrt(n / (n - 1))
    middle, _ = log_ratio(seeds)
    reach = quantile(0.975, n - 1) * scatter
    low = 0.0 if outside["below"] > 0.025 else math.exp(middle - reach)
    high = math.inf if outside["above"] > 0.025 else math.exp(middle + reach)
    return low, high


def length_for(loss: float, curve: Mapping[float, float]) -> tuple[float, str]:
    """Return the length at which a curve of losses over lengths reaches a loss.

    Returns:
        The length, and "" where it lies inside; the longest length and "above" where the loss is
        lower than all of the curve, the shortest and "below" where it is higher.

    Raises:
        ValueError: If the curve has fewer than two lengths.

    Examples:
        >>> length, beyond = length_for(1.7, {1: 2.0, 2: 1.8, 4: 1.6})
        >>> round(length, 6), beyond
        (2.828427, '')
        >>> length_for(1.5, {1: 2.0, 2: 1.8, 4: 1.6})
        (4, 'above')
    """
    lengths = sorted(curve)
    if len(lengths) < 2:
        raise ValueError(f"a curve takes two lengths or more, got {lengths}")
    losses = _falling([curve[x] for x in lengths])
    if loss <= losses[-1]:
        return lengths[-1], "" if loss == losses[-1] else "above"
    if loss >= losses[0]:
        return lengths[0], "" if loss == losses[0] else "below"
    x = [math.log(length) for length in lengths]
    slopes = _slopes(x, losses)
    i = next(i for i in range(len(x) - 1) if losses[i + 1] <= loss)
    low, high = x[i], x[i + 1]
    for _ in range(80):
        middle = (low + high) / 2
        if _cubic(middle, x, losses, slopes, i) > loss:
            low = middle
        else:
            high = middle
    return math.exp(low), ""


def _falling(losses: Sequence[float]) -> list[float]:
    """Return losses that never rise with length: the least so far."""
    found: list[float] = []
    for loss in losses:
        found.append(min(loss, found[-1]) if found else loss)
    return found


def _slopes(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """Return slopes at the points with which a piecewise cubic is monotone."""
    h = [b - a for a, b in pairwise(x)]
    d = [(b - a) / w for (a, b), w in zip(pairwise(y), h, strict=True)]
    inner = []
    for i in range(1, len(d)):
        if d[i - 1] * d[i] <= 0:
            inner.append(0.0)
            continue
        a, b = h[i - 1] + 2 * h[i], 2 * h[i - 1] + h[i]
        inner.append((a + b) / (b / d[i - 1] + a / d[i]))
    return [d[0], *inner, d[-1]]


def _cubic(
    at: float, x: Sequence[float], y: Sequence[float], slopes: Sequence[float], i: int
) -> float:
    """Return the Hermite cubic of interval i at a place."""
    h = x[i + 1] - x[i]
    t = (at - x[i]) / h
    return (
        y[i] * (1 + 2 * t) * (1 - t) ** 2
        + h * slopes[i] * t * (1 - t) ** 2
        + y[i + 1] * t**2 * (3 - 2 * t)
        + h * slopes[i + 1] * t**2 * (t - 1)
    )


def mistuned(part: GridPart, known: Losses) -> dict[float, float]:
    """Return what AdamW loses at a wrong learning rate, by the factor it is off.

    The value is the fraction of steps with which tuned AdamW reaches the same loss, at the shortest
    length and the tuning seed: a method with speedup s over tuned AdamW would have shown s over
    this fraction. Factors whose loss lies outside of AdamW's runs are left out.
    """
    found = tuned(part, REFERENCE, known)
    if found.short is None:
        return {}
    best, length = found.short, part.lengths[0]
    curve = {x: fmean(v.values()) for x, v in final_losses(part, REFERENCE, known).items()}
    if len(curve) < 2 or length not in curve:
        return {}

    def tuning(lr: float) -> float | None:
        numbers = Numbers(lr, best.weight_decay, AUX_RATES[1])
        return known.get(TuningJob(REFERENCE, length, numbers, TUNING_SEED))

    at_best, fractions = tuning(best.lr), {}
    for factor in (0.25, 0.5, 2.0, 4.0):
        loss = tuning(best.lr * factor)
        if loss is None or at_best is None or not math.isfinite(loss):
            continue
        needed, beyond = length_for(curve[length] + loss - at_best, curve)
        if not beyond:
            fractions[factor] = needed / length
    return fractions
