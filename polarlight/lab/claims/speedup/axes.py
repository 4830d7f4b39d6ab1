"""Speedup and Aurora's gain over Muon along the batch size and along the width of the MLP.

Rates, weight decay and AdamW's rate of the rest are tuned anew at each value, as in the plan's
other parts; all runs have one Chinchilla budget. The gain is the loss of Muon minus that of Aurora,
per seed; its growth is the least-squares slope over log2 of the value, also per seed.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from polarlight.lab.claims.speedup.analysis import Speedup, final_losses, speedups
from polarlight.lab.claims.speedup.plan import AXIS_METHODS, AXIS_WIDTHS, GridPart, parts_of
from polarlight.lab.claims.speedup.running import losses_of
from polarlight.lab.claims.speedup.tuning import Losses
from polarlight.lab.claims.store import RunStore
from polarlight.lab.statistics import BySeed, MeanDifference, paired
from polarlight.lab.statistics.difference import from_differences

DATED = "2026-11-30"

CHECKS = (
    "MLP width: the gain of Aurora over Muon grows with the factor: its slope per doubling, "
    "from 2x on, is above 0 with its 95 % interval. At 1x no matrix is tall: both methods are one.",
    "Batch size: the gain of Aurora over Muon changes with the batch: the 95 % interval of its "
    "slope per doubling leaves out 0. Speedups over tuned AdamW at each batch have intervals.",
)
"""Written before the runs."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Parts of the plan that differ in one number.

    Attributes:
        title: Of the number.
        parts: The parts by its value, ascending.
        sloped: Values over which the growth is taken.
    """

    title: str
    parts: Mapping[float, GridPart]
    sloped: tuple[float, ...]


def axes() -> list[Axis]:
    """Return the axes of the plan, small models first."""
    parts = {part.name: part for part in parts_of("small")}
    found = []
    for name in AXIS_WIDTHS.values():
        batch = {x: parts[f"{name}-batch-{x}k"] for x in (1, 16)} | {4: parts[name]}
        mlp = {x: parts[f"{name}-mlp-{x}x"] for x in (1, 2, 8, 16)} | {4: parts[name]}
        found += [
            Axis(f"{name}, thousands of tokens per batch", dict(sorted(batch.items())), (1, 4, 16)),
            Axis(f"{name}, width of the MLP", dict(sorted(mlp.items())), (2, 4, 8, 16)),
        ]
    return found


def gain(part: GridPart, known: Losses) -> BySeed:
    """Return the loss of Muon minus that of Aurora at the shortest length, per seed of both."""
    muon, aurora = (final_losses(part, m, known).get(part.lengths[0], {}) for m in AXIS_METHODS[1:])
    return {seed: muon[seed] - aurora[seed] for seed in sorted(set(muon) & set(aurora))}


def growth(gains: Mapping[float, BySeed]) -> MeanDifference | None:
    """Return the slope of gains over log2 of the value; None without a seed common to all.

    Examples:
        >>> slope = growth({1: {0: 0.0, 1: 0.1}, 2: {0: 0.1, 1: 0.3}, 4: {0: 0.2, 1: 0.5}})
        >>> round(slope.estimate, 6), slope.n
        (0.15, 2)
    """
    x = [math.log2(value) for value in gains]
    centred = [one - fmean(x) for one in x]
    square = math.fsum(one * one for one in centred)
    seeds = set.intersection(*(set(found) for found in gains.values())) if gains else set()
    if not seeds or not square:
        return None
    return from_differences(
        [
            math.fsum(c * found[seed] for c, found in zip(centred, gains.values(), strict=True))
            / square
            for seed in sorted(seeds)
        ]
    )


def section(runs: RunStore) -> Iterator[str]:
    """Yield the part of `docs/claims.md` on both axes, as far as they are run."""
    yield "## Along batch size and MLP width\n"
    yield "`polarlight reproduce speedup --parts NAME`, names as in the plan: AdamW, Muon and"
    yield "Aurora, tuned anew at every value, one Chinchilla budget. Gain: loss of Muon minus that"
    yield "of Aurora, in nats per byte."
    yield f"Thresholds of {DATED}, before the runs:\n"
    yield from (f"- {check}" for check in CHECKS)
    yield ""
    told = [line for axis in axes() for line in _table(axis, runs)]
    yield from told or ["No value beside the middle one is run yet.\n"]


def _table(axis: Axis, runs: RunStore) -> list[str]:
    """Return the table of an axis; empty where nothing but its middle is run."""
    data = Counter(r.data for r in runs if r.arm in AXIS_METHODS).most_common(1)
    known = {x: losses_of(p, runs, data[0][0]) if data else {} for x, p in axis.parts.items()}
    gains = {x: gain(part, known[x]) for x, part in axis.parts.items()}
    if sum(map(bool, gains.values())) < 2:
        return []
    lines = [
        f"| {axis.title} | Muon over AdamW | Aurora over AdamW | gain of Aurora over Muon | n |",
        "|---|---|---|---|---|",
    ]
    for x, part in axis.parts.items():
        if gains[x]:
            cells = _speedups(speedups(part, known[x]), part.lengths[0])
            apart = paired(gains[x], dict.fromkeys(gains[x], 0.0))
            lines.append(f"| {x:g} | {cells} | {_interval(apart)} | {apart.n} |")
    slope = growth({x: gains[x] for x in axis.sloped if gains[x]})
    if slope is not None:
        lines.append(f"\nGrowth of the gain per doubling: {_interval(slope)}, n = {slope.n}.")
    return [*lines, ""]


def _speedups(found: list[Speedup], length: float) -> str:
    own = {one.method: one for one in found if one.length == length}
    return " | ".join(str(own[m]).partition(": ")[2] if m in own else "-" for m in AXIS_METHODS[1:])


def _interval(found: MeanDifference) -> str:
    if found.error is None:
        return f"{found.estimate:.4f} (one seed)"
    low, high = found.interval()
    return f"{found.estimate:.4f} (95 % CI {low:.4f} to {high:.4f})"
