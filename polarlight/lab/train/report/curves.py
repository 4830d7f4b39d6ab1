"""Figures of quantities over steps, one panel per quantity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from polarlight.lab.report import figure, legend, tidy
from polarlight.lab.train.report.drawing import Extract, draw, end_labels, peak
from polarlight.lab.train.report.groups import Group

Scale = Callable[[Axes, float], None]
"""Sets up the y axis, given the largest value of all panels with this scale."""

HEIGHTS = (3.3, 4.4, 5.7)
"""Inches, of figures with one, two and three panels."""


def share(ax: Axes, top: float) -> None:
    """Scale an axis in percent from zero, with a margin below it."""
    top = max(0.04, top)
    ax.set_ylim(-0.03 * top, 1.06 * top)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.08 else 1))


def from_zero(ax: Axes, top: float) -> None:
    """Scale an axis from zero up."""
    ax.set_ylim(0, 1.06 * top or 1.0)
    ax.yaxis.set_major_locator(MaxNLocator(5))


def own(ax: Axes, top: float) -> None:
    """Leave the axis as it is."""
    ax.yaxis.set_major_locator(MaxNLocator(5))


def logarithmic(ax: Axes, top: float) -> None:
    """Scale an axis logarithmically; linearly if nothing is positive."""
    if top > 0:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter("{x:g}")


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity.

    Attributes:
        extract: The quantity, taken from one run.
        ylabel: Beside the axis.
        title: Above the panel.
        scale: Of the y axis; panels with the scale `share` have one height, so that they compare.
    """

    extract: Extract
    ylabel: str
    title: str = ""
    scale: Scale = from_zero


def over_steps(
    groups: Sequence[Group], panels: Sequence[Panel], *, markers: bool = False
) -> Figure | None:
    """Draw the panels that any group has; None if there are none.

    Args:
        groups: What to draw, each in its own style.
        panels: One to three.
        markers: Mark the points, where they are few.
    """
    tops = [(p, top) for p in panels if (top := peak(groups, p.extract)) is not None]
    if not tops:
        return None
    highest = max((top for panel, top in tops if panel.scale is share), default=0.0)
    new, axes = figure(HEIGHTS[len(tops) - 1], panels=len(tops), sharex=True)
    for ax, (panel, top) in zip(axes, tops, strict=True):
        draw(ax, groups, panel.extract, markers=markers)
        tidy(ax, title=panel.title, ylabel=panel.ylabel)
        panel.scale(ax, highest if panel.scale is share else top)
        end_labels(ax, groups, panel.extract)
    axes[-1].set_xlabel("step", fontsize=8.5)
    axes[-1].set_xlim(left=0)
    legend(new, {group.label: group.style for group in groups})
    return new
