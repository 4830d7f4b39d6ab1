"""Decisions on claims by samples: effects against a threshold, equality within a margin.

A check looks at a weighted sum of arms, taken per seed (`lab.statistics.contrast`). Levels:

- A part that claims an effect is reproduced if the interval of its t lies on the claimed side of
  the threshold, and not reproduced if it lies on the other.
- A part that claims equality is reproduced if the 90 % interval lies inside the margin (two
  one-sided tests), and not reproduced if the 95 % interval lies outside of it.
- Results are looked at after 4, 8, 12 and 16 seeds: every p is corrected for these looks (Pocock).
- A claim is reproduced if all of its parts are (intersection-union, no correction). It is not
  reproduced if one part is refuted; p values of refutations are corrected for the number of parts
  (Holm).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from polarlight.lab.statistics import (
    LEVEL,
    LOOKS,
    BySeed,
    MeanDifference,
    after_looks,
    contrast,
    holm,
    pocock_level,
)

Samples = Mapping[str, Mapping[str, BySeed]]
"""By arm and measure: one number per seed."""


class Verdict(StrEnum):
    """Outcome of a claim at the reduced size."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    UNDECIDED = "undecided"
    NOT_RUN = "not run yet"


@dataclass(frozen=True, slots=True)
class Finding:
    """Outcome of one check.

    Attributes:
        check: The check.
        difference: Its estimate, with the standard error.
        p: That of the claimed part, corrected for looks: below 0.05 it is reproduced.
        p_against: That of its refutation, corrected for looks and parts.
        raw_p: The smaller of both, before corrections.
        detectable: Smallest effect, from the threshold on, that these seeds find with 80 % power;
            of equality the smallest margin that they can show.
    """

    check: "Check"
    difference: MeanDifference
    p: float
    p_against: float
    raw_p: float
    detectable: float

    @property
    def verdict(self) -> Verdict:
        """The verdict on this part."""
        if self.p < LEVEL:
            return Verdict.REPRODUCED
        return Verdict.NOT_REPRODUCED if self.p_against < LEVEL else Verdict.UNDECIDED

    @property
    def is_blind(self) -> bool:
        """Tell whether a known published effect is too small for these seeds."""
        published = self.check.published
        return published is not None and self.detectable > published

    @property
    def shown(self) -> tuple[float, float, float]:
        """Estimate and 95 % interval, with the sign of the arm where there is only one."""
        low, high = self.difference.interval()
        if all(weight < 0 for weight in self.check.weights.values()):
            return 0.0 - self.difference.estimate, 0.0 - high, 0.0 - low
        return self.difference.estimate, low, high

    def __str__(self) -> str:
        estimate, low, high = self.shown
        said, n = f"{self.check.says}: {estimate:.4g}", self.difference.n
        if self.difference.error is None:
            return f"{said} (one seed): {self.verdict}"
        said += f" (95 % CI {low:.4g} to {high:.4g}, n = {n}, detectable"
        said += f" {self.detectable:.2g}): {self.verdict}"
        if self.verdict is Verdict.UNDECIDED and self.is_blind:
            said += f"; {self.check.published:g} was published, too small for these seeds"
        return said


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
        """The measure of these arms."""

    @property
    def published(self) -> float | None:
        """The published effect, beyond the threshold, in the same unit; None if none is known."""

    def __call__(self, samples: Samples) -> Finding:
        """Return the outcome, before the number of parts is corrected for."""


@dataclass(frozen=True, slots=True)
class Above:
    """Claims that a weighted sum of arms exceeds a number.

    Attributes:
        says: The part of the claim, in words.
        weights: By arm.
        measure: The measure that is summed.
        than: The number.
        published: Published excess over the number.
    """

    says: str
    weights: Mapping[str, float] = field(hash=False)
    measure: str = "loss"
    than: float = 0.0
    published: float | None = None

    def __call__(self, samples: Samples) -> Finding:
        """Return the outcome by t against the number."""
        found = _contrast(self.weights, self.measure, samples)
        raw, above = found.p(self.than), found.estimate > self.than
        p, detectable = _corrected(raw), found.detectable(pocock_level(len(LOOKS)))
        return Finding(self, found, p if above else 1.0, 1.0 if above else p, raw, detectable)


@dataclass(frozen=True, slots=True)
class Within:
    """Claims that a weighted sum of arms is zero to within a margin: that two arms are equal.

    Attributes:
        says: The part of the claim, in words.
        weights: By arm.
        margin: The margin, written before the runs.
        measure: The measure that is summed.
        published: Always None: equality has no size.
    """

    says: str
    weights: Mapping[str, float] = field(hash=False)
    margin: float
    measure: str = "loss"
    published: float | None = None

    def __call__(self, samples: Samples) -> Finding:
        """Return the outcome by two one-sided tests, and against it by t at the nearer margin."""
        found = _contrast(self.weights, self.measure, samples)
        beyond = abs(found.estimate) > self.margin
        differs = found.p(math.copysign(self.margin, found.estimate)) if beyond else 1.0
        equal = found.p_equivalent(self.margin)
        margin = found.provable_margin(pocock_level(len(LOOKS)))
        p, p_against = _corrected(equal), _corrected(differs)
        return Finding(self, found, p, p_against, min(equal, differs), margin)


def lower(
    better: str,
    worse: str,
    says: str = "",
    measure: str = "loss",
    by: float = 0.0,
    published: float | None = None,
) -> Above:
    """Claim that one arm's measure is lower than another's, by more than a number."""
    words = says or f"{measure}: {better} below {worse}" + (f" by {by:g}" if by else "")
    return Above(words, {worse: 1.0, better: -1.0}, measure, by, published)


def most(arm: str, measure: str, value: float) -> Above:
    """Claim that an arm's measure is below a number."""
    return Above(f"{measure} of {arm} below {value:g}", {arm: -1.0}, measure, -value)


def least(arm: str, measure: str, value: float) -> Above:
    """Claim that an arm's measure is above a number."""
    return Above(f"{measure} of {arm} above {value:g}", {arm: 1.0}, measure, value)


def judged(checks: Sequence[Check], samples: Samples) -> list[Finding]:
    """Return the outcome of every check, refutations corrected for their number."""
    found = [check(samples) for check in checks]
    against = holm([one.p_against for one in found])
    return [replace(one, p_against=p) for one, p in zip(found, against, strict=True)]


def overall(findings: Sequence[Finding]) -> Verdict:
    """Return the claim's verdict: all parts reproduced; or one of them refuted; or undecided."""
    verdicts = [finding.verdict for finding in findings]
    if Verdict.NOT_REPRODUCED in verdicts:
        return Verdict.NOT_REPRODUCED
    decided = verdicts and all(v is Verdict.REPRODUCED for v in verdicts)
    return Verdict.REPRODUCED if decided else Verdict.UNDECIDED


def p_of_claim(findings: Sequence[Finding]) -> float:
    """Return the p of a claim that needs all of its parts: the largest of theirs."""
    return max((finding.p for finding in findings), default=1.0)


def _contrast(weights: Mapping[str, float], measure: str, samples: Samples) -> MeanDifference:
    return contrast(weights, {arm: _finite(samples[arm][measure]) for arm in weights})


def _finite(found: BySeed) -> BySeed:
    """Return the seeds whose run has a number; a run that diverged has none."""
    return {seed: x for seed, x in found.items() if math.isfinite(x)}


def _corrected(p: float) -> float:
    return after_looks(p, len(LOOKS))
