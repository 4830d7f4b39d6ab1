"""Figures of the loss."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from polarlight.lab.report import figure, legend, plain, shorten, tidy
from polarlight.lab.report.style import FAINT
from polarlight.lab.train.report.drawing import (
    Extract,
    draw,
    end_labels,
    faint,
    lines_of,
    robust_limits,
)
from polarlight.lab.train.report.groups import Group
from polarlight.lab.train.report.series import Array, smoothed_training, validation
from polarlight.lab.train.report.significance import TOKENS

STRETCH = 0.6
"""Where the last stretch begins, as a fraction of the steps."""


def loss_curves(
    groups: Sequence[Group], *, unit: str = TOKENS, clock: bool = False
) -> Figure | None:
    """Training and validation loss against steps, or against seconds; None without any loss."""
    lines = [*_lines(groups, smoothed_training), *_lines(groups, validation)]
    limits = robust_limits(lines, _finals(groups), 0.15 * _end(lines))
    if limits is None:
        return None
    new, (ax,) = figure(3.4)
    faint(ax, groups, smoothed_training, clock=clock)
    draw(ax, groups, validation, clock=clock, markers=True)
    tidy(ax, xlabel="training time (s)" if clock else "step", ylabel=f"loss ({unit})")
    ax.set_ylim(*limits)
    ax.set_xlim(left=0)
    end_labels(ax, groups, validation, clock=clock)
    legend(new, {group.label: group.style for group in groups})
    return new


def last_stretch(groups: Sequence[Group], *, unit: str = TOKENS) -> Figure | None:
    """The validation loss over the last steps, with limits of its own."""
    lines = _lines(groups, validation)
    end = _end(lines)
    start = STRETCH * end
    limits = robust_limits(lines, _finals(groups), start)
    if limits is None or end == 0:
        return None
    new, (ax,) = figure(3.4)
    draw(ax, groups, validation, markers=True)
    tidy(ax, xlabel="step", ylabel=f"validation loss ({unit})")
    ax.set_ylim(*limits)
    ax.set_xlim(start, end + 0.03 * (end - start))
    end_labels(ax, groups, validation)
    legend(new, {group.label: group.style for group in groups})
    return new


def final_losses(groups: Sequence[Group], *, unit: str = TOKENS) -> Figure | None:
    """The final validation loss of each seed as a dot, the mean as a bar."""
    if not any(group.losses for group in groups):
        return None
    new, (ax,) = figure(max(2.0, 0.9 + 0.36 * len(groups)))
    for row, group in enumerate(groups):
        _dots(ax, row, group)
    tidy(ax, xlabel=f"final validation loss ({unit})")
    names = ax.set_yticks(range(len(groups)), [shorten(group.label, 24) for group in groups])
    for tick in names:
        plain(tick.label1)
    ax.set_ylim(len(groups) - 0.4, -0.6)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.ticklabel_format(axis="x", useOffset=False)
    return new


def _dots(ax: Axes, row: int, group: Group) -> None:
    if group.loss is None:
        where = ax.get_yaxis_transform()
        ax.text(0.02, row, "no finished run", transform=where, fontsize=8, color=FAINT, va="center")
        return
    height = np.linspace(-0.12, 0.12, len(group.losses)) if len(group.losses) > 1 else [0.0]
    colour = group.style.colour
    ax.plot([group.loss] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2)
    ax.plot(group.losses, row + np.array(height), "o", color=colour, markersize=5, alpha=0.55)


def _lines(groups: Sequence[Group], extract: Extract) -> list[tuple[Array, Array]]:
    bands = [band for group in groups for band, _ in lines_of(group, extract)]
    return [(band.steps, band.mean) for band in bands]


def _end(lines: Sequence[tuple[Array, Array]]) -> float:
    return max((float(x[-1]) for x, _ in lines if len(x)), default=0.0)


def _finals(groups: Sequence[Group]) -> list[float]:
    return [loss for group in groups for loss in group.losses]
