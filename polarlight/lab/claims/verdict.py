"""Decision of a claim from samples: a difference of means against the spread of seeds.

A check looks at a weighted sum of the means of some arms, sum_i w_i mean_i. Its error is

    s sqrt(sum_i w_i^2 / n_i)

with s the standard deviation between seeds, pooled over these arms; for two arms that is the
statistic of `train.report.significance`. Two errors make a difference.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import Protocol

from polarlight.lab.train.report.significance import LIMIT, pooled_deviation

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""By arm and measure: one number per seed."""


class Verdict(StrEnum):
    """Outcome of a claim at the reduced size."""

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
        """Text of the part of the claim."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each arm that the check uses."""

    @property
    def measure(self) -> str:
        """Name of the measure that the check uses."""

    def __call__(self, samples: Samples) -> Finding:
        """Return the finding on the samples."""


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
    """Claim that one arm's measure is lower than another's, by more than a number."""
    words = says or f"{measure} of {worse} minus that of {better} above {by:g}"
    return Above(words, {worse: 1.0, better: -1.0}, measure, by)


def most(arm: str, measure: str, value: float) -> Above:
    """Claim that an arm's measure is below a number."""
    return Above(f"minus {measure} of {arm} above {-value:g}", {arm: -1.0}, measure, -value)


def least(arm: str, measure: str, value: float) -> Above:
    """Claim that an arm's measure is above a number."""
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
    scatter = pooled_deviation(list(found.values()))
    if scatter is None:
        return estimate, None
    noise = math.sqrt(math.fsum(w**2 / len(found[arm]) for arm, w in weights.items()))
    return estimate, scatter.deviation * noise
