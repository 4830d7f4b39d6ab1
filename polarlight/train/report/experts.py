"""The section of a mixture of experts: how evenly the routers spread the tokens."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from polarlight.report import Block, Details, Section, Text, figure, legend, percent, tidy
from polarlight.train.history import History
from polarlight.train.report.drawing import draw, peak
from polarlight.train.report.groups import Group
from polarlight.train.report.sections import Album
from polarlight.train.report.series import Series, load
from polarlight.train.report.tables import load_per_layer, two_digits

_WORDS = (
    "In every layer a router sends each token to a few experts. The load of an expert is its share "
    "of what the routers sent, over the tokens of a validation; an expert is dead where it gets "
    "less than a tenth of an equal share. Among the starved rows, those of an expert are held "
    "against the update of this expert alone; where it is zero, as no token ever came, all of them "
    "count as starved."
)


def experts(groups: Sequence[Group], folder: Path) -> Section | None:
    """Spread of the load and dead experts over time, and both layer by layer; None if dense."""
    album = Album(folder)
    album.add(
        spread_of_load(groups),
        "load_variation",
        "Spread of the load",
        "Standard deviation over mean of the experts' loads, mean over layers. Zero: all experts "
        "get equally many tokens.",
    )
    album.add(
        dead_over_time(groups),
        "load_dead",
        "Dead experts",
        "Share of the experts that get less than a tenth of an equal share, mean over layers; "
        "lines at zero cover each other.",
    )
    if not album.pictures:
        return None
    tables: list[Block] = [
        Details(title, [table])
        for key, text, title in _TABLES
        if (table := load_per_layer(groups, key, text)) is not None
    ]
    return Section("Experts", [Text(_WORDS), *album.blocks(""), *tables])


_TABLES = (
    ("variation", two_digits, "Spread of the load at the end, layer by layer"),
    ("dead", percent, "Dead experts at the end, layer by layer"),
)


def spread_of_load(groups: Sequence[Group]) -> Figure | None:
    """Standard deviation over mean of the loads against steps; None without routing records."""
    if peak(groups, _variation) < 0:
        return None
    new, (ax,) = figure(3.3)
    draw(ax, groups, _variation, markers=True)
    tidy(ax, xlabel="step", ylabel="loads: deviation / mean")
    ax.set_ylim(bottom=0)
    ax.set_xlim(left=0)
    legend(new, {group.label: group.style for group in groups})
    return new


def dead_over_time(groups: Sequence[Group]) -> Figure | None:
    """The share of dead experts against steps; None without routing records."""
    highest = peak(groups, _dead)
    if highest < 0:
        return None
    top = max(0.04, highest)
    new, (ax,) = figure(3.3)
    draw(ax, groups, _dead, markers=True)
    tidy(ax, xlabel="step", ylabel="experts")
    ax.set_ylim(-0.03 * top, 1.06 * top)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.08 else 1))
    ax.set_xlim(left=0)
    legend(new, {group.label: group.style for group in groups})
    return new


def _variation(run: History) -> Series:
    return load(run, "variation")


def _dead(run: History) -> Series:
    return load(run, "dead")
