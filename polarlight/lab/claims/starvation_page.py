"""The starvation map on the page of claims: table, picture, and the cost of what was not run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from polarlight.lab.claims.cost import estimate
from polarlight.lab.claims.results import Result, findings, result_of, verdict
from polarlight.lab.claims.store import SHIPPED, RunStore
from polarlight.lab.claims.tried.starvation_map import (
    AURORA_FACTORS,
    BEYOND,
    FACTORS,
    NAME,
    PARTS,
    QUARTER,
    SIZES,
    MapSize,
    arm_label,
)
from polarlight.lab.report.style import INK, tidy
from polarlight.lab.statistics import BySeed, MeanDifference, paired
from polarlight.lab.statistics.difference import from_differences

FIGURE = "starvation_map.png"
RATES = (*FACTORS, *BEYOND)
"""Of Muon, in units of its best."""

HEAD = f"""## Where rows starve under Muon

`polarlight reproduce {NAME}`: one claim per size. Muon's best learning rate is swept at each
size on a seed of its own. Then Muon is trained at 0.5, 1, 2 and 4 times that rate, and Aurora at 1
and 4 times it, with the same seeds, initial weights and data. Muon at 8 and 16 times was added to
find the boundary, after two sizes had been seen.

A row of a gate or up projection is starved if its share of the update is below 0.1 of an equal one.
A neuron is starved by leverage if both of its rows are; by activation it is silent if its mean
magnitude is below 0.1 of its layer's. All are read at the last step; the highest share is that of
any sample, 25 steps apart. The cost is the loss of Muon minus that of Aurora at the same rate: no
comparison of two tuned methods.
"""


@dataclass(frozen=True, slots=True)
class SizeShares:
    """Runs of Muon at one size.

    Attributes:
        size: The size.
        rate: Muon's best learning rate.
        shares: By factor on the rate and measure: one number per seed.
        cost: By factor: loss of Muon minus that of Aurora at the same rate.
        result: The recorded result.
    """

    size: MapSize
    rate: float
    shares: Mapping[float, Mapping[str, BySeed]]
    cost: Mapping[float, MeanDifference]
    result: Result

    def mean(self, factor: float, measure: str = "starved") -> float:
        """Return the mean over seeds; NaN without a seed."""
        found = self.shares[factor].get(measure, {})
        return fmean(found.values()) if found else math.nan

    def boundary(self) -> str:
        """Return the factor at which a quarter of the rows starve, with its interval, in words."""
        by_seed = {x: self.shares[x]["starved"] for x in RATES}
        seeds = set.intersection(*(set(found) for found in by_seed.values()))
        found = [crossing({x: by_seed[x][seed] for x in RATES}) for seed in sorted(seeds)]
        above, below = found.count(math.inf), found.count(0.0)
        if above or below:
            side = f"above {RATES[-1]:g}" if above else f"below {RATES[0]:g}"
            return f"{side} ({above or below} of {len(found)} seeds)"
        summary = from_differences([math.log2(x) for x in found])
        low, high = (2**x for x in summary.interval())
        return f"{2**summary.estimate:.2f} ({low:.2f} to {high:.2f})"


def crossing(shares: Mapping[float, float], level: float = QUARTER) -> float:
    """Return the factor at which shares first reach a level, linear in the log of the factor.

    Returns:
        0 where all of them lie above, infinity where all lie below.

    Examples:
        >>> round(crossing({1.0: 0.1, 4.0: 0.3}, 0.2), 6)
        2.0
        >>> crossing({1.0: 0.1, 4.0: 0.15})
        inf
    """
    factors = sorted(shares)
    for i, x in enumerate(factors):
        if shares[x] >= level:
            if i == 0:
                return 0.0
            a, b = factors[i - 1], x
            part = (level - shares[a]) / (shares[b] - shares[a])
            return float(a * (b / a) ** part)
    return math.inf


def cells(out: Path | None = None) -> list[SizeShares]:
    """Return the sizes whose runs are all recorded, shipped ones and those in a folder."""
    found, shipped = [], RunStore([SHIPPED])
    for size in SIZES:
        claim = PARTS[str(size)]
        result = result_of(claim, out, shipped)
        if result is not None and _seeds(result) >= claim.seeds:
            found.append(_cell(size, result))
    return found


def _seeds(result: Result) -> int:
    """Return the number of seeds that every arm has."""
    return min(len(arm["samples"]["loss"]) for arm in result["arms"].values())


def _cell(size: MapSize, result: Result) -> SizeShares:
    arms = result["arms"]
    samples = {
        label: {name: {int(s): x for s, x in by_seed.items()} for name, by_seed in told.items()}
        for label, told in ((label, arm["samples"]) for label, arm in arms.items())
    }
    cost = {
        x: paired(samples[arm_label("muon", x)]["loss"], samples[arm_label("aurora", x)]["loss"])
        for x in AURORA_FACTORS
    }
    shares = {x: samples[arm_label("muon", x)] for x in RATES}
    return SizeShares(size, arms["muon 1x"]["lr"], shares, cost, result)


def section(out: Path | None = None) -> Iterator[str]:
    """Yield the part of `docs/claims.md` on where rows starve."""
    found = cells(out)
    yield HEAD
    if found:
        yield f"![Share of starved rows by learning rate and size](images/{FIGURE})\n"
        yield from _table(found)
        yield from _verdicts(found)
    yield from _missing({str(cell.size) for cell in found})


def _table(found: Sequence[SizeShares]) -> Iterator[str]:
    shares = " | ".join(f"{x:g}x" for x in RATES)
    yield "Starved rows in percent, at multiples of the best rate; the multiple at which a quarter"
    yield "starves, interpolated per seed; starved and silent neurons at 4x, in percent; cost in"
    yield "nats per byte. Intervals: 95 %.\n"
    yield (
        f"| width x layers, steps | best rate | {shares} | highest at 4x | a quarter at "
        "| neurons | silent | cost at 1x | cost at 4x | n |"
    )
    yield "|---" * (len(RATES) + 9) + "|"
    for cell in found:
        numbers = " | ".join(f"{100 * cell.mean(x):.1f}" for x in RATES)
        size, n = cell.size, cell.cost[AURORA_FACTORS[0]].n
        top = FACTORS[-1]
        told = [
            f"{100 * cell.mean(top, name):.1f}" for name in ("starved neurons", "silent neurons")
        ]
        yield (
            f"| {size.width} x {size.layers}, {size.steps} | {cell.rate:g} | {numbers} "
            f"| {100 * cell.mean(top, 'most starved'):.1f} | {cell.boundary()} "
            f"| {told[0]} | {told[1]} | {_interval(cell.cost[1.0])} "
            f"| {_interval(cell.cost[4.0])} | {n} |"
        )
    yield ""


def _interval(found: MeanDifference) -> str:
    low, high = found.interval()
    return f"{found.estimate:.4f} ({low:.4f} to {high:.4f})"


def _verdicts(found: Sequence[SizeShares]) -> Iterator[str]:
    """Yield the verdict of every size and of its parts, and what the runs took."""
    claim = PARTS[str(found[0].size)]
    yield f"Claim at each size, thresholds of {claim.dated}: {claim.says}\n"
    yield "Verdicts (these claims are not part of Holm's correction over the page):\n"
    for cell in found:
        claim = PARTS[str(cell.size)]
        parts = "; ".join(map(str, findings(claim, cell.result)))
        minutes = cell.result["cpu_seconds"] / 60
        yield (
            f"- **{cell.size}: {verdict(claim, cell.result)}**. {parts}. {cell.result['runs']} "
            f"runs, {minutes:.0f} core minutes, {', '.join(cell.result['machines'])}."
        )
    yield ""


def _missing(known: set[str]) -> Iterator[str]:
    told = [f"{name} ({estimate(claim)})" for name, claim in PARTS.items() if name not in known]
    if told:
        yield f"Not run: {'; '.join(told)}. Command: `polarlight reproduce {NAME} --parts SIZE`.\n"


def figure(found: Sequence[SizeShares]) -> Figure:
    """Return starved shares as cells, learning rate by width, a panel per depth and length."""
    panels: dict[tuple[int, int], list[SizeShares]] = {}
    for cell in found:
        panels.setdefault((cell.size.steps, cell.size.layers), []).append(cell)
    heights = [len(panels[key]) for key in sorted(panels)]
    new = Figure(figsize=(6.4, 0.55 + sum(0.55 * h + 0.75 for h in heights)), layout="constrained")
    axes = new.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, key in zip(axes, sorted(panels), strict=True):
        _draw(ax, sorted(panels[key], key=lambda cell: cell.size))
        steps, layers = key
        tidy(ax, f"{layers} layers, {steps} steps", "", "width")
        ax.grid(visible=False)
    axes[-1].set_xlabel("learning rate, in units of Muon's best at that size", fontsize=8.5)
    new.suptitle(
        "Starved rows under Muon, % (bold: a quarter or more)", fontsize=9.5, color=INK, x=0.02,
        ha="left",
    )  # fmt: skip
    return new


def _draw(ax: Any, found: Sequence[SizeShares]) -> None:
    shares = [[100 * cell.mean(x) for x in RATES] for cell in found]
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=50, aspect="auto")
    for row, cell in enumerate(found):
        for column, factor in enumerate(RATES):
            share = shares[row][column]
            heavy = share >= 100 * QUARTER
            text = f"{share:.0f} %\n(lr {cell.rate * factor:g})"
            ax.text(
                column, row, text, ha="center", va="center", fontsize=8,
                color="white" if share > 28 else INK, fontweight="bold" if heavy else "normal",
            )  # fmt: skip
    ax.set_xticks(range(len(RATES)), [f"{x:g}x" for x in RATES])
    ax.set_yticks(range(len(found)), [str(cell.size.width) for cell in found])


def write_figure(folder: Path, out: Path | None = None) -> Path | None:
    """Write the picture to a folder; return its path, or None where nothing is recorded."""
    found = cells(out)
    if not found:
        return None
    canvas: Any = FigureCanvasAgg(figure(found))
    canvas.figure.set_dpi(120)
    folder.mkdir(parents=True, exist_ok=True)
    canvas.print_png(folder / FIGURE, metadata={"Software": None})
    return folder / FIGURE
