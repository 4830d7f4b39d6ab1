"""Final losses of several optimizers against one of them, and the result in sentences.

The reference is AdamW where it was run, else the first optimizer: a choice that the losses do not
enter. Comparisons are paired by seed (`lab.statistics`).
"""

import shlex
from collections.abc import Sequence

from polarlight.lab.statistics import Compared, Standing, against_reference, sentence
from polarlight.lab.statistics.family import ENOUGH
from polarlight.lab.train.report.groups import Group

REFERENCE = "adamw"
TOKENS = "nats/token"


def reference_of(groups: Sequence[Group]) -> Group | None:
    """Return AdamW's group, else the first one, of those with a final loss."""
    known = [group for group in groups if group.losses]
    named = [group for group in known if group.label.split(" ")[0] == REFERENCE]
    return next(iter(named or known), None)


def compared(groups: Sequence[Group]) -> list[Compared]:
    """Return every group with a final loss against the reference, the lowest loss first."""
    reference = reference_of(groups)
    if reference is None:
        return []
    found = against_reference({g.label: g.by_seed for g in groups}, reference.label)
    return sorted(found, key=lambda one: one.difference.estimate)


def headline(found: Sequence[Compared], unit: str = TOKENS, command: str = "") -> str:
    """Return the first sentence of a report: the lowest loss against the reference.

    Args:
        found: From `compared`, one comparison or more.
        unit: Unit of the losses.
        command: Command of the runs; where more seeds are needed they are asked for with it.
    """
    first = found[0]
    if all(one.difference.error is None for one in found):
        return f"{sentence(first, unit)} For one, run: {with_seeds(command, ENOUGH)}"
    said = sentence(first, unit)
    if first.standing is Standing.UNDECIDED:
        needed = first.difference.seeds_for(first.difference.estimate, first.level)
        if needed is not None and needed > first.difference.n:
            said += f" If that is the difference, about {needed} seeds show it: "
            said += with_seeds(command, needed)
    return said


def with_seeds(command: str, seeds: int) -> str:
    """Return a command line with another number of seeds.

    Examples:
        >>> with_seeds("polarlight compare --seeds 1 --steps 9", 4)
        'polarlight compare --steps 9 --seeds 4'
    """
    words = shlex.split(command or "polarlight compare")
    kept: list[str] = []
    for word in words:
        if kept and kept[-1] == "--seeds":
            kept.pop()
        elif not word.startswith("--seeds="):
            kept.append(word)
    return shlex.join([*kept, "--seeds", str(seeds)])
