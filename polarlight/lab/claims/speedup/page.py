"""Plan and results of the speedup runs as text and as a figure."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from polarlight.lab.claims.cost import core_seconds, hidden_parameters
from polarlight.lab.claims.speedup.analysis import (
    REFERENCE,
    Speedup,
    fall,
    final_losses,
    mistuned,
    speedups,
)
from polarlight.lab.claims.speedup.plan import CHECKS, DATED, SIZES, GridPart
from polarlight.lab.claims.speedup.running import losses_of, records_of
from polarlight.lab.claims.speedup.tuning import Losses, TuningJob, due
from polarlight.lab.claims.store import RunRecord, RunStore
from polarlight.lab.report.style import FAINT, LineStyle, legend, styles, tidy
from polarlight.lab.statistics import BySeed, against_reference, sentence

PEAK = 1e14
"""Operations per second that the estimate for a GPU assumes: 100 TFLOP/s."""


def plan_lines(parts: Sequence[GridPart], methods: Sequence[str] = ()) -> Iterator[str]:
    """Yield runs, processor time and operations of a plan, part by part, before it is started."""
    yield f"Thresholds, written {DATED}:"
    yield from (f"  - {check}" for check in CHECKS)
    runs, seconds, operations = 0, 0.0, 0.0
    for part in parts:
        own = [m for m in methods or part.methods if m in part.methods]
        count = sum(sum(part.runs(m).values()) for m in own)
        cost = sum(map(part.core_seconds, own))
        work = sum(map(part.operations, own))
        runs, seconds, operations = runs + count, seconds + cost, operations + work
        steps = {f"{x:g}": part.plan(x).steps for x in part.lengths_of(REFERENCE)}
        yield (
            f"{part.name}: {hidden_parameters(part.model):,} parameters, {part.seeds} seeds, "
            f"steps by budgets {steps}, {len(own)} methods: {count} runs, {_hours(cost, work)}"
        )
    yield f"in all {runs} runs without extensions, {_hours(seconds, operations)}"


def _hours(seconds: float, operations: float) -> str:
    """Return processor time, or for what no CPU finishes the time of a GPU."""
    if seconds < 1e4 * 3600:
        return f"about {seconds / 3600:.2g} core hours"
    return f"{operations:.2g} operations, {operations / PEAK / 3600:.3g} hours at 100 TFLOP/s"


def result_lines(part: GridPart, known: Losses) -> Iterator[str]:
    """Yield the results of a part in sentences; what is not run yet is named."""
    open_ = [m for m in part.methods if due(part, m, known)]
    found = speedups(part, known)
    yield f"{part.name}: {len(known)} runs recorded; not finished: {', '.join(open_) or 'none'}"
    yield from (f"  {one}" for one in found)
    falls = (fall(part, m, known) for m in part.methods if m != REFERENCE)
    yield from (f"  {one}" for one in falls if one is not None)
    for length in part.lengths:
        losses: dict[str, BySeed] = {
            m: final_losses(part, m, known).get(length, {})
            for m in ("muon", "aurora", "aurora-release")
            if m in part.methods
        }
        if losses.get("muon"):
            compared = against_reference(losses, "muon")
            yield from (f"  {length:g} budgets: {sentence(c, 'nats/byte')}" for c in compared)
    for factor, fraction in mistuned(part, known).items():
        yield (
            f"  AdamW at {factor:g} times its learning rate needs {1 / fraction:.2f} times the "
            "steps (tuning seed alone): speedups over it would read higher by this factor"
        )


def figure(parts: Mapping[str, Sequence[Speedup]]) -> Figure:
    """Return speedup against length, one panel per part, with 95 % intervals."""
    shown = {name: found for name, found in parts.items() if found}
    looks = styles(dict.fromkeys(one.method for found in shown.values() for one in found))
    new = Figure(figsize=(1.4 + 4.8 * max(1, len(shown)), 3.6), layout="constrained")
    axes = new.subplots(1, max(1, len(shown)), squeeze=False, sharey=True)[0]
    for ax, (name, found) in zip(axes, shown.items(), strict=False):
        _draw(ax, found, looks)
        across = "training length, Chinchilla budgets (20 bytes per parameter)"
        tidy(ax, f"{name} parameters", across, "steps of tuned AdamW to the same loss / own")
    if shown:
        legend(new, looks)
    return new


def _draw(ax: Axes, found: Sequence[Speedup], looks: Mapping[str, LineStyle]) -> None:
    ax.axhline(1.0, color=FAINT, linewidth=1)
    methods = list(dict.fromkeys(one.method for one in found))
    for place, method in enumerate(methods):
        mine = [one for one in found if one.method == method]
        shift = 2 ** (0.07 * (place - (len(methods) - 1) / 2))  # so that intervals do not overlap
        _draw_method(ax, mine, shift, looks[method])
    lengths = sorted({one.length for one in found})
    ax.set_xscale("log", base=2)
    ax.set_xticks(lengths, [f"{x:g}" for x in lengths])
    if any(one.beyond == "above" for one in found):
        note = (
            "\N{BLACK UP-POINTING TRIANGLE} more than this: AdamW's longest runs do not get there"
        )
        ax.annotate(note, (0.98, 0.1), xycoords="axes fraction", ha="right", fontsize=7.5)


def _draw_method(ax: Axes, mine: Sequence[Speedup], shift: float, look: LineStyle) -> None:
    inside = [one for one in mine if not one.beyond]
    x = [one.length * shift for one in inside]
    ax.plot(
        x,
        [one.ratio for one in inside],
        color=look.colour,
        linestyle=look.dashes,
        linewidth=1.2,
        marker="o",
        markersize=3.5,
    )
    for at, one in zip(x, inside, strict=True):
        if math.isfinite(one.low):
            top = one.high if math.isfinite(one.high) else 1.5 * one.ratio
            ax.plot([at, at], [one.low, top], color=look.colour, alpha=0.5)
    for one in mine:
        if one.beyond == "above":
            ax.plot(one.length * shift, one.ratio, "^", color=look.colour)


def write_figure(parts: Mapping[str, Sequence[Speedup]], path: Path) -> None:
    """Write the figure as PNG."""
    canvas: Any = FigureCanvasAgg(figure(parts))
    canvas.figure.set_dpi(120)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.print_png(path, metadata={"Software": None})


def section(runs: RunStore) -> Iterator[str]:
    """Yield the part of `docs/claims.md` on speedups, with the cost of what was not run."""
    yield "## Speedup over tuned AdamW\n"
    yield "`polarlight reproduce speedup --size small`: steps that tuned AdamW needs to reach a"
    yield "method's loss, over the method's own steps, interpolated along AdamW's runs of several"
    yield "lengths. Every method is tuned at one Chinchilla budget (20 bytes per parameter) with"
    yield "the same number of runs: 4 x 3 learning rates and decays, 2 rates for embeddings, head"
    yield "and norms, 2 learning rates again, and up to 10 more where the best is at an end. The"
    yield "learning rate is checked at 4 budgets."
    yield f"Tuning has a seed of its own. Thresholds of {DATED}, before the runs:\n"
    yield from (f"- {check}" for check in CHECKS)
    yield "\nSpeedups in time are not given: step times were not measured under load.\n"
    missing, dearer = [], dict[int, float]()
    for part in SIZES["small"]:
        data = _data_of(part, runs)
        known, found = losses_of(part, runs, data), records_of(part, runs, data)
        if found:
            dearer[part.model.width] = _dearer(part, found)
        left = sum(_left(part, m, known) for m in part.methods if due(part, m, known))
        left *= dearer.get(part.model.width, 1.0)
        if left:
            missing.append(f"{part.name} {left / 3600:.2g} core hours")
        if known:
            yield from _part_section(part, known)
    yield f"\nNot run yet, with the estimated cost: {'; '.join(missing) or 'nothing'}. Estimates go"
    yield "by tokens and parameters, and by the processor time of recorded runs of the same width:"
    yield "small models cost more than their parameters tell."
    yield "`--size gpu` has a setting for one GPU (`--plan` prints its cost).\n"


def _data_of(part: GridPart, runs: RunStore) -> str:
    """Return the data of most records of a part's methods."""
    counts = Counter(r.data for r in runs if r.arm in part.methods)
    return counts.most_common(1)[0][0] if counts else ""


def _dearer(part: GridPart, found: Mapping[TuningJob, RunRecord]) -> float:
    """Return the processor time of recorded runs over their estimate."""
    spent = sum(record.cpu_seconds for record in found.values())
    return spent / sum(core_seconds(part.plan(job.length)) for job in found)


def _left(part: GridPart, method: str, known: Losses) -> float:
    """Return the estimated processor time of the runs of a method that are not recorded."""
    done = Counter(job.length for job in known if job.method == method)
    return sum(
        max(0, count - done[length]) * core_seconds(part.plan(length))
        for length, count in part.runs(method).items()
    )


def _part_section(part: GridPart, known: Losses) -> Iterator[str]:
    open_ = [m for m in part.methods if due(part, m, known)]
    size = f"{hidden_parameters(part.model) / 1e6:.2g} M parameters"
    batch = part.model.tokens_per_step
    yield f"**{part.name}**: {size}, {batch} bytes per step, {len(known)} runs recorded;"
    yield f"not finished: {', '.join(open_) or 'none'}.\n"
    found = speedups(part, known)
    if found:
        yield "| method | budgets | speedup in steps | 95 % interval | n |"
        yield "|---|---|---|---|---|"
        yield from map(_row, found)
        yield ""
    lines = list(result_lines(part, known))[1 + len(found) :]
    yield from (f"- {line.strip()}" for line in lines)


def _row(one: Speedup) -> str:
    interval = "-" if math.isnan(one.low) else f"{one.low:.2f} to {_end(one.high)}"
    ratio = f"{one.beyond} {one.ratio:.2f}".strip()
    return f"| {one.method} | {one.length:g} | {ratio} | {interval} | {one.seeds} |"


def _end(high: float) -> str:
    return "no upper end" if math.isinf(high) else f"{high:.2f}"
