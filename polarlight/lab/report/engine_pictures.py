"""Pictures of engines: the map from singular values to singular values, and errors by case."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from polarlight.lab.report.style import figure, legend, styles, tidy


def schedule_figure(maps: Mapping[str, Callable[[float], float]], lowest: float = 1e-6) -> Figure:
    """Draw each map sigma -> output on [lowest, 1], log axis, with the band [0.7, 1.3]."""
    drawn, (ax,) = figure(3.4)
    sigmas = np.logspace(np.log10(lowest), 0, 1500)
    looks = styles(maps)
    ax.axhspan(0.7, 1.3, color="#f2f2f2", zorder=0)
    ax.axhline(1, color="#999999", linewidth=0.8, zorder=1)
    for name, f in maps.items():
        outputs = [f(float(sigma)) for sigma in sigmas]
        ax.plot(sigmas, outputs, color=looks[name].colour, ls=looks[name].dashes, lw=1.3)
    ax.set_xscale("log")
    ax.set_ylim(-0.05, 1.5)
    ax.set_xlim(lowest, 1)
    tidy(ax, "", "singular value / norm", "after the iteration")
    legend(drawn, looks)
    return drawn


def error_figure(
    engines: Sequence[str], cases: Sequence[str], errors: Sequence[Sequence[float]]
) -> Figure:
    """Draw errors by engine (rows) and case (columns), one colour per decade."""
    table = np.log10(np.maximum(np.array(errors), 1e-16))
    drawn = Figure(
        figsize=(0.62 * len(cases) + 3.0, 0.24 * len(engines) + 1.6), layout="constrained"
    )
    ax = drawn.subplots()
    image = ax.imshow(table, cmap="viridis", vmin=-16, vmax=0.5, aspect="auto")
    for i, row in enumerate(table):
        for j, value in enumerate(row):
            colour = "white" if value < -7 else "black"
            text = f"{value:.1f}" if value > -3 else f"{value:.0f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
    ax.set_xticks(range(len(cases)), cases, rotation=40, ha="right", fontsize=8)
    ax.set_yticks(range(len(engines)), engines, fontsize=8)
    ax.tick_params(length=0)
    drawn.colorbar(image, ax=ax, label="log10 of the relative error", shrink=0.6)
    return drawn
