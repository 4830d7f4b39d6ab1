"""Drawing of groups' curves, the same in every figure."""

from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine

from polarlight.lab.report import plain, shorten
from polarlight.lab.train.history import History
from polarlight.lab.train.report.groups import Group
from polarlight.lab.train.report.measures import step_time
from polarlight.lab.train.report.series import Array, SeedBand, Series, over_seeds

Extract = Callable[[History], Series]

_MOST_POINTS = 600
_MOST_MARKERS = 30


def lines_of(group: Group, extract: Extract) -> list[tuple[SeedBand, History | None]]:
    """Return the curves of a group: its finished runs as one band, the others each alone."""
    finished = [s for run in group.finished if len((s := extract(run)).steps)]
    bands: list[tuple[SeedBand, History | None]] = (
        [(over_seeds(finished), None)] if finished else []
    )
    alone = [(extract(run), run) for run in group.cut_short]
    return bands + [(over_seeds([series]), run) for series, run in alone if len(series.steps)]


def peak(groups: Sequence[Group], extract: Extract) -> float | None:
    """Return the largest value to draw; None without values."""
    bands = [band for group in groups for band, _ in lines_of(group, extract)]
    return max((float(band.high.max()) for band in bands if len(band.high)), default=None)


def draw(
    ax: Axes,
    groups: Sequence[Group],
    extract: Extract,
    *,
    clock: bool = False,
    markers: bool = False,
) -> None:
    """Draw mean and range of every group; an unfinished run is thin, with a mark at its end.

    Args:
        ax: Where to draw.
        groups: What to draw, each in its own style.
        extract: The quantity, taken from one run.
        clock: Draw against seconds instead of steps: steps times the median time of a step, so that
            a machine that was busy for a while does not bend a curve.
        markers: Mark the points, where they are few.
    """
    for group in groups:
        for band, cut_short in lines_of(group, extract):
            x = _across(group, band, cut_short) if clock else band.steps
            _draw_band(ax, group, x, band, markers=markers, alone=cut_short is not None)
            if cut_short is not None:
                _mark_end(ax, group, x[-1], band.mean[-1], stopped=cut_short.stopped is not None)


def _across(group: Group, band: SeedBand, cut_short: History | None) -> Array:
    """Return seconds: steps times the median step time; recorded seconds where it is unknown."""
    ms = group.average(step_time) if cut_short is None else step_time(cut_short)
    return band.seconds if ms is None else band.steps * ms / 1e3


def end_labels(ax: Axes, groups: Sequence[Group], extract: Extract, *, clock: bool = False) -> None:
    """Write labels right of the axes, at the ends of their lines; close ones are moved apart.

    Call it when the limits of the axes are set.
    """
    ends: list[tuple[float, Group]] = []
    for group in groups:
        for band, cut_short in lines_of(group, extract)[:1]:
            x = _across(group, band, cut_short) if clock else band.steps
            at = ax.transData.transform((x[-1], band.mean[-1]))
            ends.append((float(ax.transAxes.inverted().transform(at)[1]), group))
    new = ax.get_figure(root=True)
    engine = new.get_layout_engine() if new else None
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, 0, 0.98, 1))  # letters of an SVG are wider than those measured here
    ends.sort(key=lambda end: end[0])
    heights = apart([height for height, _ in ends], _LABEL / _inches_high(ax))
    for height, (_, group) in zip(heights, ends, strict=True):
        words = ax.text(1.015, height, shorten(group.label, 14), transform=ax.transAxes)
        words.set(fontsize=7.5, color=group.style.colour, va="center")
        plain(words)


_LABEL = 0.14
"""Inches between the middles of two labels."""


def _inches_high(ax: Axes) -> float:
    """Return about the height of an axes: without its title, ticks and legend."""
    new = ax.get_figure(root=True)
    return max(0.5, (new.get_figheight() if new else 3.0) / len(new.axes if new else [ax]) - 0.8)


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return sorted heights in [0, 1], moved so that neighbours differ by at least `gap`.

    Where 1 / gap labels or more are wanted the gap is smaller.

    Examples:
        >>> apart([0.5, 0.5], 0.25)
        [0.5, 0.75]
        >>> apart([0.9, 1.0], 0.25)
        [0.75, 1.0]
    """
    if len(heights) > 1:
        gap = min(gap, 1 / (len(heights) - 1))
    placed: list[float] = []
    for height in heights:
        wanted = min(max(height, 0.0), 1.0)
        placed.append(max(wanted, placed[-1] + gap) if placed else wanted)
    ceiling = 1.0
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def _draw_band(
    ax: Axes, group: Group, x: Array, band: SeedBand, *, markers: bool, alone: bool
) -> None:
    colour = group.style.colour
    marked = "o" if len(x) == 1 or (markers and len(x) <= _MOST_MARKERS) else ""
    ax.plot(
        x,
        band.mean,
        color=colour,
        linestyle=group.style.dashes,
        linewidth=1.0 if alone else 1.5,
        alpha=0.8 if alone else 1.0,
        marker=marked,
        markersize=2.6,
    )
    if (band.high > band.low).any():
        ax.fill_between(x, band.low, band.high, color=colour, alpha=0.16, linewidth=0)


def _mark_end(ax: Axes, group: Group, x: float, y: float, *, stopped: bool) -> None:
    """Draw a cross where a run was stopped, an open circle where it is unfinished."""
    colour = group.style.colour
    face, marker = (colour, "X") if stopped else ("white", "o")
    ax.plot([x], [y], marker, markersize=6, markeredgecolor=colour, markerfacecolor=face)


def faint(ax: Axes, groups: Sequence[Group], extract: Extract, *, clock: bool = False) -> None:
    """Draw thin, transparent lines behind the others."""
    for group in groups:
        for band, cut_short in lines_of(group, extract):
            x = _across(group, band, cut_short) if clock else band.steps
            every = max(1, len(x) // _MOST_POINTS)
            ax.plot(
                x[::every], band.mean[::every], color=group.style.colour, linewidth=0.9, alpha=0.4
            )


def robust_limits(
    lines: Sequence[tuple[Array, Array]], finals: Sequence[float], start: float
) -> tuple[float, float] | None:
    """Return limits for y that show the part after `start` and all final values.

    The upper limit is the median, over lines, of the largest value from `start` on, so a run that
    blows up leaves the picture instead of flattening it; nothing above the median first value is
    shown. None where there is nothing to draw.
    """
    late = [y[x >= start] for x, y in lines]
    late = [y for y in late if len(y)] or [y for _, y in lines if len(y)]
    if not late:
        return None
    ceiling = median(y[0] for _, y in lines if len(y))
    low = min(*(y.min() for y in late), *finals, np.inf)
    high = max(median(y.max() for y in late), *finals, -np.inf)
    high = max(min(high, ceiling), low)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return float(low - room), float(high + room)
