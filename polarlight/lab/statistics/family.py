"""Arms against one reference arm, with intervals that hold together, and the result in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from polarlight.lab.statistics.corrections import dunnett_level
from polarlight.lab.statistics.difference import LEVEL, BySeed, MeanDifference, paired, welch

ENOUGH = 4
"""Seeds that are suggested where there is only one."""


class Standing(StrEnum):
    """Verdict on an arm: lower is better."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Compared:
    """One arm against the reference.

    Attributes:
        arm: Label of the arm.
        reference: Label of the reference.
        difference: Arm minus reference.
        level: Two-sided level of this comparison, so that all of them together have 0.05.
        comparisons: How many there are.
    """

    arm: str
    reference: str
    difference: MeanDifference
    level: float = LEVEL
    comparisons: int = 1

    @property
    def interval(self) -> tuple[float, float]:
        """The interval; those of all comparisons hold together with confidence 95 %."""
        return self.difference.interval(self.level)

    @property
    def detectable(self) -> float:
        """The smallest effect found with 80 % power at this level."""
        return self.difference.detectable(self.level)

    @property
    def standing(self) -> Standing:
        """The verdict: whether the interval leaves out zero, and on which side."""
        if self.difference.p() >= self.level:
            return Standing.UNDECIDED
        return Standing.BETTER if self.difference.estimate < 0 else Standing.WORSE


def against_reference(arms: Mapping[str, BySeed], reference: str) -> list[Compared]:
    """Return every other arm against the reference, in the given order.

    Arms that share seeds with the reference are paired; others are compared by Welch's t. The level
    of each comparison is Dunnett's (`dunnett_level`), for the smallest number of seeds; a family of
    which one comparison is unpaired takes the Bonferroni level instead.

    Args:
        arms: By label: one number per seed; lower is better. Arms without numbers are left out.
        reference: Label of the arm that the others are held against, chosen before the runs.

    Raises:
        KeyError: If there is no such arm.

    Examples:
        >>> losses = {"adamw": {0: 1.80, 1: 1.83}, "muon": {0: 1.70, 1: 1.72}}
        >>> (found,) = against_reference(losses, "adamw")
        >>> str(found.standing), round(found.difference.estimate, 3)
        ('better', -0.105)
    """
    base = arms[reference]
    others = {label: x for label, x in arms.items() if label != reference and x}
    if not base:
        return []
    found = {label: _difference(x, base) for label, x in others.items()}
    several = [d for d in found.values() if d.error is not None]
    level = LEVEL
    if several and all(d.paired for d in several):
        level = dunnett_level(len(several), min(d.n for d in several))
    elif several:
        level = LEVEL / len(several)
    return [Compared(label, reference, d, level, len(found)) for label, d in found.items()]


def _difference(x: BySeed, base: BySeed) -> MeanDifference:
    if set(x) & set(base):
        return paired(x, base)
    return welch(list(x.values()), list(base.values()))


def sentence(one: Compared, unit: str = "nats/token") -> str:
    """Return the comparison in one sentence, with its interval and what was needed.

    Examples:
        >>> found = paired({0: 1.60, 1: 1.63, 2: 1.62}, {0: 1.70, 1: 1.72, 2: 1.71})
        >>> sentence(Compared("aurora", "adamw", found), "nats/byte")
        'aurora beats adamw by 0.093 nats/byte (95 % CI 0.079 to 0.108, n = 3, paired).'
    """
    difference, n = one.difference, one.difference.n
    digits = _digits(difference)
    size = f"{abs(difference.estimate):.{digits}f} {unit}"
    if difference.error is None:
        side = "below" if difference.estimate < 0 else "above"
        return (
            f"{one.arm} ended {size} {side} {one.reference} with one seed, which gives no interval."
        )
    low, high = one.interval
    if one.standing is Standing.BETTER or difference.estimate < 0:
        low, high = -high, -low
    about = [f"95 % CI {low:.{digits}f} to {high:.{digits}f}", f"n = {n}"]
    about.append("paired" if difference.paired else "unpaired")
    if one.comparisons > 1:
        about.append(f"{one.comparisons} comparisons")
    if difference.flips is not None:
        about.append(f"sign-flip p {difference.flips:.2g}")
    told = f"({', '.join(about)})"
    if one.standing is Standing.BETTER:
        return f"{one.arm} beats {one.reference} by {size} {told}."
    if one.standing is Standing.WORSE:
        return f"{one.arm} is worse than {one.reference} by {size} {told}."
    lower = one.arm if difference.estimate < 0 else one.reference
    return (
        f"{one.arm} and {one.reference} cannot be told apart: {lower} is lower by {size} {told}; "
        f"80 % power needs a difference of {one.detectable:.{digits}f}."
    )


def _digits(difference: MeanDifference) -> int:
    """Digits after the point: two of the standard error, three at least."""
    error = difference.error
    if not error:
        return 4
    digits = 3
    while error < 1.5 * 10**-digits and digits < 8:
        digits += 1
    return digits
