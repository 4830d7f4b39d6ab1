"""Figures of rows and spectra: how evenly the neurons of a layer are moved."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from polarlight.report import figure, legend, percent, plain, shorten, tidy
from polarlight.report.style import FAINT, INK
from polarlight.train.history import Record
from polarlight.train.report.drawing import draw, peak
from polarlight.train.report.groups import Group
from polarlight.train.report.measures import READINGS, THRESHOLDS, last_full
from polarlight.train.report.series import Array, Series, spread_of_rows, starved

LOWEST, HIGHEST = 1e-4, 10.0
EDGES = np.logspace(-4, 1, 51)
_ZERO = LOWEST * 10**-0.25
"""Where the bar of the rows below the lowest edge is centred."""
_FLOOR = 1e-4
"""Singular values below this are drawn as this."""


def starved_over_time(groups: Sequence[Group], reading: str) -> Figure | None:
    """The share of starved rows against steps, one panel per threshold; None without records."""
    extracts = {key: _starved(*key) for key in ((r, t) for r in READINGS for t in THRESHOLDS)}
    peaks = [peak(groups, extract) for extract in extracts.values()]
    if max(peaks) < 0:
        return None
    top = max(0.04, *peaks)
    new, axes = figure(4.4, panels=len(THRESHOLDS), sharex=True)
    for ax, threshold in zip(axes, THRESHOLDS, strict=True):
        draw(ax, groups, extracts[reading, threshold])
        tidy(ax, title=f"below {threshold:g} of an equal share", ylabel="rows")
        ax.set_ylim(-0.03 * top, 1.06 * top)
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.08 else 1))
    axes[-1].set_xlabel("step", fontsize=8.5)
    axes[-1].set_xlim(left=0)
    legend(new, {group.label: group.style for group in groups})
    return new


def share_histograms(groups: Sequence[Group], reading: str) -> Figure | None:
    """How the rows' shares are distributed at the end, one panel per group that recorded them."""
    pooled = [(group, shares) for group in groups if len(shares := shares_at_end(group, reading))]
    if not pooled:
        return None
    new, axes = figure(0.65 + 0.82 * len(pooled), panels=len(pooled), sharex=True)
    for ax, (group, shares) in zip(axes, pooled, strict=True):
        _histogram(ax, group, shares)
    axes[-1].set_xlabel("share of a row, in units of an equal share", fontsize=8.5)
    ticks = [_ZERO, 1e-3, 1e-2, 0.1, 1.0, 10.0]
    axes[-1].set_xticks(ticks, ["<10⁻⁴", "0.001", "0.01", "0.1", "1", "≥10"])
    return new


def shares_at_end(group: Group, reading: str) -> Array:
    """The shares of all rows in the last full neuron records of a group, pooled."""
    layers = [layer[reading].get("shares", []) for layer in _full_layers(group)]
    shares = np.concatenate([np.asarray(part, dtype=float) for part in [[], *layers]])
    finite: Array = shares[np.isfinite(shares)]
    return finite


def spread_over_time(groups: Sequence[Group]) -> Figure | None:
    """Spread of the update's row norms against steps."""
    if peak(groups, spread_of_rows) < 0:
        return None
    new, (ax,) = figure(3.3)
    draw(ax, groups, spread_of_rows)
    tidy(ax, xlabel="step", ylabel="row norms: deviation / mean")
    ax.set_ylim(bottom=0)
    ax.set_xlim(left=0)
    legend(new, {group.label: group.style for group in groups})
    return new


def spectra_at_end(groups: Sequence[Group]) -> Figure | None:
    """Singular values of the update at the end, largest first."""
    known = [(group, sigmas) for group in groups if len(sigmas := _spectra(group))]
    if not known:
        return None
    new, (ax,) = figure(3.3)
    for group, sigmas in known:
        at = np.linspace(0, 1, sigmas.shape[1])
        ax.plot(at, sigmas.mean(0), color=group.style.colour, ls=group.style.dashes, lw=1.5)
        ax.fill_between(
            at, sigmas.min(0), sigmas.max(0), color=group.style.colour, alpha=0.16, linewidth=0
        )
    tidy(ax, xlabel="index / number of singular values", ylabel="value / root mean square")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_ylim(bottom=min(sigmas.min() for _, sigmas in known) / 1.2)
    ax.set_xlim(0, 1)
    legend(new, {group.label: group.style for group in groups})
    return new


def _starved(reading: str, threshold: float) -> Callable[..., Series]:
    return lambda run: starved(run, reading, threshold)


def _histogram(ax: Axes, group: Group, shares: Array) -> None:
    """Log-spaced bars, with one bar for what lies below the first edge, zeros included."""
    edges = np.concatenate([[_ZERO * 10**-0.15, _ZERO * 10**0.15], EDGES])
    counts = np.histogram(np.clip(shares, LOWEST, HIGHEST * 0.9999), EDGES)[0].astype(float)
    below = float((shares < LOWEST).sum())
    counts[0] -= below
    heights = np.concatenate([[below, 0.0], counts]) / len(shares)
    ax.stairs(heights, edges, fill=True, color=group.style.colour, alpha=0.75)
    ax.axvline(0.1, color=INK, linewidth=0.9, linestyle="dashed")
    tidy(ax)
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(_ZERO * 10**-0.3, HIGHEST * 1.05)
    ax.set_yticks([0, heights.max()], ["", percent(heights.max(), 0)])
    ax.set_ylim(0, heights.max() * 1.12)
    ax.grid(visible=False, axis="y")
    _name(ax, 0.92, shorten(group.label, 30), "bold", INK)
    _name(ax, 0.66, f"{percent(float((shares < 0.1).mean()))} below 0.1", "normal", FAINT)


def _name(ax: Axes, height: float, words: str, weight: str, colour: str) -> None:
    """Words at the left edge of a panel."""
    text = ax.text(0.09, height, words, transform=ax.transAxes, va="top", fontsize=8.5)
    text.set(fontweight=weight, color=colour)
    plain(text)


def _full_layers(group: Group) -> list[Record]:
    records = [record for run in group.counted if (record := last_full(run)) is not None]
    return [layer for record in records for layer in record["layers"].values()]


def _spectra(group: Group) -> Array:
    """Sorted singular values of every matrix at the same 200 places, one row per matrix."""
    places = np.linspace(0, 1, 200)
    rows = [
        np.interp(places, np.linspace(0, 1, len(sigma)), np.sort(sigma)[::-1].clip(_FLOOR))
        for layer in _full_layers(group)
        if len(sigma := np.asarray(layer.get("singular_values", []), dtype=float))
        and np.isfinite(sigma).all()
    ]
    return np.stack(rows) if rows else np.empty((0, 200))
