"""How samples decide a claim: a difference of means against the spread between seeds.

A check looks at a weighted sum of the means of some arms, sum_i w_i mean_i. Its error is

    s sqrt(sum_i w_i^2 / n_i)

with s the standard deviation between seeds, pooled over these arms. Two errors make a difference.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, variance
from typing import Protocol

LIMIT = 2.0

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""By arm and measure: one number per seed."""


class Verdict(StrEnum):
    """What a run at the reduced size says of a claim."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    UNDECIDED = "undecided at this size"
    NOT_RUN = "not run yet"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome: the estimate, its error (None with a single seed), what follows."""

    says: str
    estimate: float
    error: float | None
    verdict: Verdict

    def __str__(self) -> str:
        spread = "one seed" if self.error is None else f"error {self.error:.3g}"
        return f"{self.says}: {self.estimate:.4g} ({spread}): {self.verdict}"


class Check(Protocol):
    """Part of a claim that samples decide."""

    @property
    def says(self) -> str:
        """The part, in words."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The arms that it looks at."""

    @property
    def measure(self) -> str:
        """What it looks at in them."""

    def __call__(self, samples: Samples) -> Finding:
        """The outcome."""


@dataclass(frozen=True, slots=True)
class Above:
    """Claims that a weighted sum of means exceeds a number.

    Attributes:
        says: The part of the claim, in words.
        weights: By arm.
        measure: What is averaged.
        than: The number.
    """

    says: str
    weights: Mapping[str, float]
    measure: str = "loss"
    than: float = 0.0

    def __call__(self, samples: Samples) -> Finding:
        """Reproduced two errors above the number, not reproduced two below it."""
        estimate, error = _estimate(self.weights, self.measure, samples)
        margin = LIMIT * error if error is not None else math.inf
        verdict = Verdict.UNDECIDED
        if estimate - margin > self.than:
            verdict = Verdict.REPRODUCED
        elif estimate + margin < self.than:
            verdict = Verdict.NOT_REPRODUCED
        return Finding(self.says, estimate, error, verdict)


@dataclass(frozen=True, slots=True)
class Within:
    """Claims that a weighted sum of means is zero to within a margin: that two arms are equal."""

    says: str
    weights: Mapping[str, float]
    margin: float
    measure: str = "loss"

    def __call__(self, samples: Samples) -> Finding:
        """Reproduced if two errors around the estimate lie inside, not if they lie outside."""
        estimate, error = _estimate(self.weights, self.measure, samples)
        spread = LIMIT * error if error is not None else math.inf
        verdict = Verdict.UNDECIDED
        if abs(estimate) + spread <= self.margin:
            verdict = Verdict.REPRODUCED
        elif abs(estimate) - spread > self.margin:
            verdict = Verdict.NOT_REPRODUCED
        return Finding(self.says, estimate, error, verdict)


def lower(better: str, worse: str, says: str = "", measure: str = "loss", by: float = 0.0) -> Above:
    """Claims that one arm's measure is lower than another's, by more than a number."""
    words = says or f"{measure} of {worse} minus that of {better} above {by:g}"
    return Above(words, {worse: 1.0, better: -1.0}, measure, by)


def most(arm: str, measure: str, value: float) -> Above:
    """Claims that an arm's measure is below a number."""
    return Above(f"minus {measure} of {arm} above {-value:g}", {arm: -1.0}, measure, -value)


def least(arm: str, measure: str, value: float) -> Above:
    """Claims that an arm's measure is above a number."""
    return Above(f"{measure} of {arm} above {value:g}", {arm: 1.0}, measure, value)


def overall(findings: Sequence[Finding]) -> Verdict:
    """All parts reproduced; or one of them not; or undecided."""
    verdicts = [finding.verdict for finding in findings]
    if Verdict.NOT_REPRODUCED in verdicts:
        return Verdict.NOT_REPRODUCED
    decided = verdicts and all(v is Verdict.REPRODUCED for v in verdicts)
    return Verdict.REPRODUCED if decided else Verdict.UNDECIDED


def _estimate(
    weights: Mapping[str, float], measure: str, samples: Samples
) -> tuple[float, float | None]:
    found = {arm: samples[arm][measure] for arm in weights}
    estimate = math.fsum(w * fmean(found[arm]) for arm, w in weights.items())
    several = [x for x in found.values() if len(x) > 1]
    if not several:
        return estimate, None
    freedom = sum(len(x) - 1 for x in several)
    deviation = math.sqrt(math.fsum((len(x) - 1) * variance(x) for x in several) / freedom)
    noise = math.sqrt(math.fsum(w**2 / len(found[arm]) for arm, w in weights.items()))
    return estimate, deviation * noise
