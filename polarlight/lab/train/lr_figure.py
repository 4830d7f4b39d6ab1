"""Figures of a search for a learning rate: losses over rates, optima over width."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, isfinite, log
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from polarlight.lab.report.style import FAINT, LineStyle, legend, styles, tidy
from polarlight.lab.statistics import BySeed, Standing, against_reference
from polarlight.lab.tuning import Sweep

SLACK = 0.01
"""Nats: rates whose loss is that near to the least are as good as it, for one seed or two."""


@dataclass(frozen=True, slots=True)
class Searched:
    """Result of a search for one optimizer and width.

    Attributes:
        optimizer: Name of the recipe.
        width: Of the residual stream.
        sweep: Losses over rates.
        step: RMS-to-RMS norm of a square hidden weight's step at lr 1, see `LrSearch.step`.
        losses: By rate and seed.
    """

    optimizer: str
    width: int
    sweep: Sweep
    step: float
    losses: Mapping[float, BySeed] = field(default_factory=dict)

    @property
    def alike(self) -> list[float] | None:
        """Rates that the seeds cannot tell from the best one, the best included.

        Paired by seed, all rates together at 95 %. The best is chosen by the same seeds, so that
        this is a guide and no test. None with one seed.
        """
        best = self.sweep.rates[self.sweep.best]
        arms = {f"{lr:g}": found for lr, found in self.losses.items()}
        found = against_reference(arms, f"{best:g}") if arms.get(f"{best:g}") else []
        known = [one for one in found if one.difference.error is not None]
        if not known:
            return None
        open_ = [float(one.arm) for one in known if one.standing is not Standing.WORSE]
        return sorted([best, *open_])

    def record(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        best, near = self.sweep.optimum, self.sweep.within(SLACK)
        return {
            "optimizer": self.optimizer,
            "width": self.width,
            "rates": list(self.sweep.rates),
            "losses": [loss if isfinite(loss) else None for loss in self.sweep.losses],
            "by_seed": {f"{lr:g}": dict(found) for lr, found in sorted(self.losses.items())},
            "alike": self.alike,
            "optimum": {"lr": best.lr, "loss": best.loss, "edge": best.edge},
            "within": {"slack": SLACK, "low": near[0], "high": near[1]},
        }


def predictions(found: Sequence[Searched]) -> list[float]:
    """Return rates of equal operator norm per width, through the middle inner optimum."""
    inside = [one for one in found if one.sweep.edge is None] or list(found)
    level = sum(log(one.sweep.optimum.lr * one.step) for one in inside) / len(inside)
    return [exp(level) / one.step for one in found]


def draw(found: Sequence[Searched], unit: str = "nats/token") -> Figure:
    """Draw a row per optimizer: losses in `unit` over rates, and optima over width for several."""
    names = list(dict.fromkeys(one.optimizer for one in found))
    widths = list(dict.fromkeys(one.width for one in found))
    looks = styles(f"width {width}" for width in widths)
    columns = 2 if len(widths) > 1 else 1
    figure = Figure(figsize=(4.6 * columns, 3.1 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), columns, squeeze=False), names, strict=True):
        some = [one for one in found if one.optimizer == name]
        _losses(axes[0], some, looks, unit)
        if columns > 1:
            _optima(axes[1], some, looks)
    legend(figure, looks)
    return figure


def _losses(ax: Axes, found: Sequence[Searched], looks: Mapping[str, LineStyle], unit: str) -> None:
    """Draw finite losses above the least of each width, as wider models have lower losses."""
    for one in found:
        look, best = looks[f"width {one.width}"], one.sweep.optimum
        above = [loss - best.loss for loss in one.sweep.losses]
        line: dict[str, Any] = {"color": look.colour, "ls": look.dashes, "lw": 1.2}
        ax.plot(one.sweep.rates, above, marker="o", markersize=3, **line)
        ax.plot(best.lr, 0.0, "*", color=look.colour, markersize=9, clip_on=False)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylim(0, 0.12)
    tidy(ax, f"{found[0].optimizer} (star: optimum)", "learning rate", f"loss above least ({unit})")


def _optima(ax: Axes, found: Sequence[Searched], looks: Mapping[str, LineStyle]) -> None:
    widths = [one.width for one in found]
    expected = predictions(found)
    for one in found:
        best, (low, high) = one.sweep.optimum, one.sweep.within(SLACK)
        colour = looks[f"width {one.width}"].colour
        ax.plot([one.width] * 2, [low, high], color=colour, linewidth=3, alpha=0.35)
        ax.plot(one.width, best.lr, "*", color=colour, markersize=10)
    ax.plot(widths, expected, "--", color=FAINT, linewidth=1.2)
    ax.set(xscale="log", yscale="log", ylim=(min(expected) / 6, max(expected) * 6))
    ax.set_xticks(widths, [str(width) for width in widths])
    ax.minorticks_off()
    title = "star: optimum; bar: within 0.01 of it; dashed: equal steps"
    tidy(ax, title, "width", "best learning rate")
    ax.set_title(title, loc="left", fontsize=8)
