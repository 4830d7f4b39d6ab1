"""Figures of row shares and spectra."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from polarlight.lab.report import figure, legend, percent, plain, shorten, tidy
from polarlight.lab.report.style import FAINT, INK
from polarlight.lab.train.history import Record
from polarlight.lab.train.report.curves import logarithmic
from polarlight.lab.train.report.groups import Group
from polarlight.lab.train.report.measures import last_full
from polarlight.lab.train.report.series import Array, SeedBand, over_seeds, reading

LOWEST, HIGHEST = 1e-4, 10.0
EDGES = np.logspace(-4, 1, 51)
_ZERO = LOWEST * 10**-0.25
"""Where the bar of the rows below the lowest edge is centred."""
_FLOOR = 1e-4
"""Singular values below this are drawn as this."""


def share_histograms(groups: Sequence[Group], name: str) -> Figure | None:
    """Draw the distribution of row shares at the end, one panel per group."""
    pooled = [(group, shares) for group in groups if len(shares := shares_at_end(group, name))]
    if not pooled:
        return None
    new, axes = figure(0.65 + 0.82 * len(pooled), panels=len(pooled), sharex=True)
    for ax, (group, shares) in zip(axes, pooled, strict=True):
        _histogram(ax, group, shares)
    axes[-1].set_xlabel("share of a row, in units of an equal share", fontsize=8.5)
    ticks = [_ZERO, 1e-3, 1e-2, 0.1, 1.0, 10.0]
    axes[-1].set_xticks(ticks, ["<10⁻⁴", "0.001", "0.01", "0.1", "1", "≥10"])
    return new


def shares_at_end(group: Group, name: str) -> Array:
    """Return the shares of all rows in a group's last full records, pooled."""
    layers = [layer[name].get("shares", []) for layer in _full_layers(group)]
    shares = np.concatenate([np.asarray(part, dtype=float) for part in [[], *layers]])
    finite: Array = shares[np.isfinite(shares)]
    return finite


def spectra_at_end(groups: Sequence[Group]) -> Figure | None:
    """Draw singular values of the update at the end, largest first."""
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
    logarithmic(ax, 1.0)
    ax.set_ylim(bottom=min(sigmas.min() for _, sigmas in known) / 1.2)
    ax.set_xlim(0, 1)
    legend(new, {group.label: group.style for group in groups})
    return new


def quantiles_over_time(groups: Sequence[Group]) -> Figure | None:
    """Draw bands of the update's singular values over steps, a panel per group."""
    found = [(group, [_over_runs(group, key) for key in _QUANTILES]) for group in groups]
    known = [(g, [b for b in bands if b]) for g, bands in found if all(bands)]
    if not known:
        return None
    new, axes = figure(0.65 + 0.95 * len(known), panels=len(known), sharex=True)
    for ax, (group, bands) in zip(axes, known, strict=True):
        _bands(ax, group, bands)
    limits = [limit for ax in axes for limit in ax.get_ylim()]
    for ax in axes:
        ax.set_ylim(min(limits), max(limits))
        if max(limits) > 4 * min(limits):  # 1, 2, 5, 10 ... would touch in a panel this low
            ax.yaxis.set_major_locator(LogLocator(subs=(1,)))
    axes[-1].set_xlabel("step", fontsize=8.5)
    axes[-1].set_xlim(left=0)
    return new


_QUANTILES = tuple(f"quantiles/{level}" for level in ("0", "0.1", "0.5", "0.9", "1"))


def _bands(ax: Axes, group: Group, bands: Sequence[SeedBand]) -> None:
    """Draw two bands of quantiles around their median, log scale."""
    least, low, middle, high, largest = (band.mean.clip(_FLOOR) for band in bands)
    x, colour = bands[0].steps, group.style.colour
    ax.fill_between(x, least, largest, color=colour, alpha=0.16, linewidth=0)
    ax.fill_between(x, low, high, color=colour, alpha=0.3, linewidth=0)
    ax.plot(x, middle, color=colour, linestyle=group.style.dashes, linewidth=1.5)
    tidy(ax)
    logarithmic(ax, float(largest.max()))
    plain(ax.set_title(shorten(group.label, 30), loc="left", fontsize=8.5, fontweight="bold"))


def _over_runs(group: Group, key: str) -> SeedBand | None:
    """Return a reading of the counted runs; None where they do not have it."""
    series = [s for run in group.counted if len((s := reading(run, key)).steps)]
    return over_seeds(series) if series else None


def _histogram(ax: Axes, group: Group, shares: Array) -> None:
    """Draw log-spaced bars, with one bar for all below the first edge, zeros included."""
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
    """Write words at the left edge of a panel."""
    text = ax.text(0.09, height, words, transform=ax.transAxes, va="top", fontsize=8.5)
    text.set(fontweight=weight, color=colour)
    plain(text)


def _full_layers(group: Group) -> list[Record]:
    records = [record for run in group.counted if (record := last_full(run)) is not None]
    return [layer for record in records for layer in record["layers"].values()]


def _spectra(group: Group) -> Array:
    """Return sorted singular values at 200 equal places, one row per matrix."""
    places = np.linspace(0, 1, 200)
    rows = [
        np.interp(places, np.linspace(0, 1, len(sigma)), np.sort(sigma)[::-1].clip(_FLOOR))
        for layer in _full_layers(group)
        if len(sigma := np.asarray(layer.get("singular_values", []), dtype=float))
        and np.isfinite(sigma).all()
    ]
    return np.stack(rows) if rows else np.empty((0, 200))
