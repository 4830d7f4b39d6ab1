"""Heatmaps over depth."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from polarlight.lab.inspection.depth import DepthTable
from polarlight.lab.report import figure, plain, shorten
from polarlight.lab.report.style import FAINT, INK

_MOST_NUMBERS = 16
"""Layers up to which cells are labelled with their number."""


_ACROSS = 72
"""Characters of size 8 that fit beside each other under the picture."""


def heatmap(table: DepthTable, *, percent: bool = False) -> Figure:
    """Draw layers from top to bottom, kinds of matrices from left to right; darker is more."""
    rows, columns = len(table.depths), len(table.kinds)
    values = np.array([[np.nan if x is None else x for x in row] for row in table.values])
    new, (ax,) = figure(min(7.5, 1.5 + 0.24 * max(rows, 3)))
    top = max(float(np.nanmax(values)), 0.04 if percent else 0.0) or 1.0
    image = ax.imshow(values, aspect="auto", cmap="YlOrRd", vmin=0, vmax=top)
    bar = new.colorbar(image, ax=ax, fraction=0.05, pad=0.02)
    bar.ax.tick_params(labelsize=8, color=FAINT)
    bar.ax.yaxis.set_major_formatter(lambda x, _: _word(x, percent=percent))
    ax.set_xticks(range(columns))
    names = [_stacked(shorten(kind, 24)) for kind in table.kinds]
    upright = all(len(line) * columns <= _ACROSS for name in names for line in name.split("\n"))
    turned: dict[str, Any] = (
        {} if upright else {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    )
    for text in ax.set_xticklabels(names, **turned):
        plain(text)
    every = max(1, -(-rows // 20))
    ax.set_yticks(range(0, rows, every), [str(d) for d in table.depths[::every]])
    ax.tick_params(labelsize=8, labelcolor=INK, color=FAINT, length=0)
    ax.set_ylabel("layer", fontsize=8.5, color=INK)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if rows <= _MOST_NUMBERS and columns <= 8:
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if value > 0.7 * top else INK
                words = _word(value, percent=percent)
                ax.text(j, i, words, ha="center", va="center", fontsize=8, color=colour)
    return new


def _stacked(kind: str) -> str:
    """Return `mlp.up_proj` as two lines."""
    return kind.replace(".", "\n")


def _word(x: float, *, percent: bool) -> str:
    if percent:
        return f"{100 * x:.0f} %"
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.2g}"
