"""Figure of the times of a step's parts."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from polarlight.lab.report import figure, fixed, plain, shorten, tidy
from polarlight.lab.report.style import INK
from polarlight.lab.train.report.groups import Group
from polarlight.lab.train.report.measures import mean, part_times

NAMES = {"data": "data", "forward_backward": "forward and backward", "optimizer": "optimizer"}
COLOURS = ("#c9ced6", "#8d99ab", "#34495e", "#b3a58c", "#d8cfc0")
"""Parts of a step; none is the colour of an optimizer."""


def step_times(groups: Sequence[Group]) -> Figure | None:
    """Draw median milliseconds per step by part, a stacked bar per group; None without."""
    times = {group.label: known for group in groups if (known := mean_parts(group))}
    if not times:
        return None
    parts = list(dict.fromkeys(part for known in times.values() for part in known))
    new, (ax,) = figure(1.2 + 0.36 * len(times))
    left = [0.0] * len(times)
    for part, colour in zip(parts, COLOURS * len(parts), strict=False):
        width = [known.get(part, 0.0) for known in times.values()]
        bars = ax.barh(
            range(len(times)), width, 0.62, left, color=colour, label=NAMES.get(part, part)
        )
        left = [a + b for a, b in zip(left, width, strict=True)]
    sums = [fixed(total, 1) for total in left]
    ax.bar_label(bars, sums, padding=4, fontsize=8, color=INK)
    tidy(ax, xlabel="milliseconds per step")
    ax.grid(visible=False, axis="y")
    for tick in ax.set_yticks(range(len(times)), [shorten(label, 24) for label in times]):
        plain(tick.label1)
    ax.set_ylim(len(times) - 0.5, -0.5)
    ax.set_xlim(0, 1.13 * max(left) or 1.0)
    new.legend(loc="outside upper left", ncols=3, fontsize=8.5, frameon=False)
    return new


def mean_parts(group: Group) -> dict[str, float]:
    """Return median milliseconds of each part of a step, mean over the counted runs."""
    runs = [times for run in group.counted if (times := part_times(run))]
    parts = dict.fromkeys(part for times in runs for part in times)
    return {part: mean(times.get(part, 0.0) for times in runs) or 0.0 for part in parts}
