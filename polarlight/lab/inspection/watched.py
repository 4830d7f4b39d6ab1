"""Page on a run: the JSON lines of a probe, drawn over steps."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from polarlight.diagnostics.sinks import flat
from polarlight.lab.inspection.natural import natural
from polarlight.lab.report import (
    Block,
    Cell,
    Column,
    Grid,
    Page,
    Picture,
    Section,
    Table,
    Text,
    count,
    figure,
    glossary,
    percent,
    picture,
    plain,
    render,
    tidy,
)
from polarlight.lab.report.style import COLOURS

KNOWN = {**glossary.NEURONS, **glossary.ACTIVATIONS, **glossary.DESCENT}
"""What is drawn where a probe tells it: its key, a title, how to read it."""

_PREFIX = "x"

Numbers = Mapping[tuple[str, str], Mapping[int, float]]
"""By name and key: a number per step."""


def write_watched(title: str, records: Iterable[tuple[int, Mapping[str, Any]]], out: Path) -> Path:
    """Write `index.html` and a picture per quantity; see `KNOWN`.

    Args:
        title: Of the page.
        records: Steps and records by name, as `sinks.read_json_lines` gives them.
        out: The folder; it is created.

    Raises:
        ValueError: If there are no records, or none holds a known quantity.
    """
    steps, numbers = _table(records)
    if not steps:
        raise ValueError("there are no records; was the probe attached with optimizer.observe?")
    out.mkdir(parents=True, exist_ok=True)
    pictures = list(_pictures(steps, numbers, out))
    if not pictures:
        raise ValueError(f"no known quantity is in the records; known are {', '.join(KNOWN)}")
    names = sorted({name for name, _ in numbers}, key=natural)
    opening: list[Block] = [
        Text(
            f"{count(len(steps), 'sample')} from step {steps[0]} to {steps[-1]} at "
            f"{len(names)} matrices or layers.{_starving(steps[-1], numbers)}",
            "lead",
        )
    ]
    sections = [
        Section("Over steps", [Text(_READING), Grid(pictures)]),
        Section("In the last sample", [_last(names, numbers)]),
    ]
    path = out / "index.html"
    path.write_text(render(Page(title, opening, sections)), encoding="utf-8")
    return path


def _starving(step: int, numbers: Numbers) -> str:
    """Return a sentence on the starved rows in the last sample; empty where it has none."""
    found = [at[step] for (_, k), at in numbers.items() if k == "update/starved/0.1" and step in at]
    if not found:
        return ""
    low, high = percent(min(found)), percent(max(found))
    span = low if low == high else f"{low} to {high}"
    return f" In the last one {span} of the rows of a matrix are starved."


_READING = (
    "Lines are means over matrices; shaded is the range from the least to the greatest of them."
)


def _table(records: Iterable[tuple[int, Mapping[str, Any]]]) -> tuple[list[int], Numbers]:
    steps: list[int] = []
    numbers: dict[tuple[str, str], dict[int, float]] = {}
    for step, layers in records:
        steps.append(step)
        for name, record in layers.items():
            for key, value in flat({_PREFIX: record}, layers=False).items():
                place = name, key.removeprefix("neurons/mean/")
                numbers.setdefault(place, {})[step] = value
    return steps, numbers


def _pictures(steps: list[int], numbers: Numbers, out: Path) -> Iterator[Picture]:
    for key, (title, caption) in KNOWN.items():
        series = [values for (_, k), values in numbers.items() if k == key]
        told = [s for s in steps if any(s in values for values in series)]
        if told:
            at = [[v[s] for v in series if s in v and np.isfinite(v[s])] for s in told]
            name = key.replace("/", "_")
            caption = caption[0].upper() + caption[1:] + "."
            yield picture(_curve(told, at), out, name, title=title, caption=caption)


def _curve(steps: list[int], at: list[list[float]]) -> Figure:
    new, (ax,) = figure(2.6)
    kept = [(s, values) for s, values in zip(steps, at, strict=True) if values]
    x = [s for s, _ in kept]
    ax.plot(x, [float(np.mean(v)) for _, v in kept], color=COLOURS[0], marker="o", markersize=2.5)
    low, high = ([float(f(v)) for _, v in kept] for f in (np.min, np.max))
    ax.fill_between(x, low, high, color=COLOURS[0], alpha=0.16, linewidth=0)
    tidy(ax, xlabel="step")
    if min(low, default=0.0) >= 0:
        ax.set_ylim(bottom=0, top=1.05 * max(high, default=0.0) or 0.04)
    for text in ax.get_xticklabels():
        plain(text)
    return new


def _last(names: list[str], numbers: Numbers) -> Table:
    """Return the last number of every matrix for each recorded quantity."""
    keys = [key for key in KNOWN if any(k == key for _, k in numbers)]
    columns = [Column("matrix", left=True)]
    columns += [Column(KNOWN[key][0], hint=KNOWN[key][1]) for key in keys]
    rows = [[Cell(name), *(_cell(numbers.get((name, key))) for key in keys)] for name in names]
    return Table(columns, rows, "Last measurement of each quantity.")


def _cell(values: Mapping[int, float] | None) -> Cell:
    return Cell("\N{EN DASH}" if not values else f"{values[max(values)]:.3g}")
