"""Style of all figures: one colour per label, thin axes, legends outside.

Figures are plain `Figure` objects, never pyplot's: nothing global is opened or changed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

COLOURS = (  # Okabe and Ito without yellow and black, and two more that stay apart from them
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#b8569a",
    "#e69f00",
    "#56b4e9",
    "#7a1f2b",
    "#6e6e6e",
)
Dashes = Literal["solid", "dashed", "dotted", "dashdot"]
DASHES: tuple[Dashes, ...] = ("solid", "dashed", "dotted", "dashdot")
INK, FAINT, GRID = "#222222", "#6b6b6b", "#e6e6e6"
WIDTH = 5.4
"""Inches; two such figures stand side by side on a wide page, one on a narrow page."""

_HANDLE, _CHARACTER, _LINE = 0.58, 0.073, 0.17
"""Inches: a line of the legend without its name, a character of a name, the height of a row."""


@dataclass(frozen=True, slots=True)
class LineStyle:
    """Colour and dashes of one label, in every figure."""

    colour: str
    dashes: Dashes


def styles(labels: Iterable[str]) -> dict[str, LineStyle]:
    """Return a style per label in order of appearance, no two alike among the first 32.

    Neighbours differ in colour and dashes: curves that cover each other stay visible.
    """
    unique = list(dict.fromkeys(labels))
    return {label: _style(index) for index, label in enumerate(unique)}


def _style(index: int) -> LineStyle:
    dashes = DASHES[(index + index // len(COLOURS)) % len(DASHES)]
    return LineStyle(COLOURS[index % len(COLOURS)], dashes)


def figure(height: float, panels: int = 1, sharex: bool = False) -> tuple[Figure, list[Axes]]:
    """Make a figure of the standard width with `panels` axes below each other."""
    new = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    axes = new.subplots(panels, 1, sharex=sharex, squeeze=False)
    return new, list(axes[:, 0])


def tidy(ax: Axes, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Remove the axes' box and add a faint grid and small text."""
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    ax.grid(visible=True, color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(which="both", labelsize=8, labelcolor=INK, color=FAINT)
    ax.tick_params(which="minor", length=2)
    ax.set_xlabel(xlabel, fontsize=8.5, color=INK)
    ax.set_ylabel(ylabel, fontsize=8.5, color=INK)
    if title:
        ax.set_title(title, loc="left", fontsize=9.5, color=INK, fontweight="bold")


def legend(target: Figure, entries: Mapping[str, LineStyle]) -> None:
    """Draw labels and lines above the axes in columns; the figure grows."""
    names = [shorten(label) for label in entries]
    lines = [
        Line2D([], [], color=style.colour, linestyle=style.dashes, linewidth=1.8)
        for style in entries.values()
    ]
    columns = _columns(names)
    target.set_figheight(target.get_figheight() + _LINE * math.ceil(len(names) / columns))
    box = target.legend(
        lines, names, loc="outside upper left", ncols=columns, fontsize=8.5, frameon=False
    )
    for text in box.get_texts():
        plain(text)


def _columns(names: Sequence[str]) -> int:
    """Return the number of columns that fit, but no more than the rows need."""
    fitting = [n for n in range(1, len(names) + 1) if _legend_width(names, n) <= WIDTH]
    rows = math.ceil(len(names) / max(fitting, default=1))
    return math.ceil(len(names) / rows)


def _legend_width(names: Sequence[str], columns: int) -> float:
    """Return the width of the legend; names run down the columns."""
    short, longer = divmod(len(names), columns)
    sizes = [short + 1] * longer + [short] * (columns - longer)
    starts = [sum(sizes[:column]) for column in range(columns)]
    parts = [names[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    return sum(_HANDLE + _CHARACTER * max(map(len, part)) for part in parts)


def plain(text: Text) -> None:
    """Escape dollar signs, which start a formula in matplotlib."""
    text.set_parse_math(False)


def shorten(label: str, length: int = 28) -> str:
    """Shorten a long label in the middle; replace characters without a glyph by a box."""
    label = "".join(c if c.isprintable() else "\N{WHITE SQUARE}" for c in " ".join(label.split()))
    half = (length - 1) // 2
    return label if len(label) <= length else f"{label[:half]}…{label[-half:]}"
