"""Drawing of groups' curves, the same in every figure."""

from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
from matplotlib.axes import Axes

from polarlight.lab.train.history import History
from polarlight.lab.train.report.groups import Group
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
        clock: Draw against seconds instead of steps.
        markers: Mark the points, where they are few.
    """
    for group in groups:
        for band, cut_short in lines_of(group, extract):
            x = band.seconds if clock else band.steps
            _draw_band(ax, group, x, band, markers=markers, alone=cut_short is not None)
            if cut_short is not None:
                _mark_end(ax, group, x[-1], band.mean[-1], stopped=cut_short.stopped is not None)


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
        for band, _ in lines_of(group, extract):
            x = band.seconds if clock else band.steps
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
