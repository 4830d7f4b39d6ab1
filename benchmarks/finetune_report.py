"""Tables and picture of `benchmarks.finetune`: losses at the best rate and at equal forgetting."""

from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import matplotlib.pyplot as plt
from rich import box
from rich.table import Table

from polarlight.lab.statistics import contrast, holm, paired

FORGETTING_BOUNDS = (0.5, 1.0)
"""Bounds on forgetting under which the new-domain loss is compared, in nats/byte."""

LOSS_BOUNDS = (1.5, 1.25)
"""Bounds on the new-domain loss under which forgetting is compared, in nats/byte."""


def forgetting(record):
    return record["old after"] - record["old before"]


def new_loss(record):
    return record["new after"]


MEASURES = {"new-domain loss": new_loss, "forgetting": forgetting}


@dataclass(frozen=True)
class Cell:
    """Judged runs of one pair of optimizers.

    Attributes:
        best: Rate with the least new-domain loss of seed 0.
        judged: Records by seed and rate, rates in order.
    """

    best: float
    judged: dict

    def at_best(self, measure):
        """Return the measure by seed, at the best rate."""
        return {seed: measure(runs[self.best]) for seed, runs in self.judged.items()}

    def path(self, seed):
        """Return (forgetting, new-domain loss) by rate in order, after the base's own."""
        records = list(self.judged[seed].values())
        base = (0.0, records[0]["new before"])
        return [base, *((forgetting(record), new_loss(record)) for record in records)]


def least_within(points, bound):
    """Return the least y with x <= bound on the lines that join points (x, y); None if none."""
    found = [y for x, y in points if x <= bound]
    for (x0, y0), (x1, y1) in pairwise(points):
        if min(x0, x1) < bound < max(x0, x1):
            found.append(y0 + (y1 - y0) * (bound - x0) / (x1 - x0))
    return min(found, default=None)


def shown(difference, digits=3):
    low, high = difference.interval()
    return f"{difference.estimate:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def adjusted(differences):
    """Return the differences by pair, shown, with p by Holm's rule."""
    ps = holm([difference.p() for difference in differences.values()])
    return {
        pair: (shown(difference), f"{p:.3f}")
        for (pair, difference), p in zip(differences.items(), ps, strict=True)
    }


def at_best_rates(cells):
    """Return the table of pairs at the rate with the least new-domain loss."""
    first = next(iter(cells))
    reference = cells[first].at_best(new_loss)
    others = adjusted(
        {
            pair: paired(cell.at_best(new_loss), reference)
            for pair, cell in cells.items()
            if pair != first
        }
    )
    table = Table("pretrained", "fine-tuned", "lr", *MEASURES, box=box.MARKDOWN)
    table.add_column(f"new, to {first[1]} on {first[0]}")
    table.add_column("p (Holm)")
    for pair, cell in cells.items():
        means = [f"{fmean(cell.at_best(measure).values()):.3f}" for measure in MEASURES.values()]
        table.add_row(*pair, f"{cell.best:g}", *means, *others.get(pair, ("", "")))
    return table


def least_under(cells, bound, swapped):
    """Return the least value of one measure while the other is at most the bound, by seed.

    swapped bounds the new-domain loss in place of forgetting. Pairs of optimizers that miss the
    bound on any seed are left out.
    """
    found = {}
    for pair, cell in cells.items():
        paths = {seed: cell.path(seed) for seed in cell.judged}
        if swapped:
            paths = {seed: [(y, x) for x, y in path] for seed, path in paths.items()}
        least = {seed: least_within(path, bound) for seed, path in paths.items()}
        if None not in least.values():
            found[pair] = least
    return found


def under_a_bound(cells, bound, swapped):
    """Return the table of one measure's least value while the other is at most the bound.

    swapped compares forgetting at equal new-domain loss.
    """
    reached = least_under(cells, bound, swapped)
    others = adjusted(
        {
            (base, method): paired(by_seed, reached[base, "adamw"])
            for (base, method), by_seed in reached.items()
            if method != "adamw" and (base, "adamw") in reached
        }
    )
    bounded, compared = reversed(MEASURES) if not swapped else MEASURES
    table = Table("pretrained", "fine-tuned", box=box.MARKDOWN)
    table.add_column(f"{compared}, {bounded} <= {bound:g}")
    table.add_column("to adamw on the same base")
    table.add_column("p (Holm)")
    for pair in cells:
        mean = f"{fmean(reached[pair].values()):.3f}" if pair in reached else "not reached"
        table.add_row(*pair, mean, *others.get(pair, ("", "")))
    return table


def rise_by_thinning(cells, bound):
    """Return by how much leaving out every second rate raises the new-domain loss at a bound.

    The largest mean over seeds: the scale of what joining points by lines costs.
    """
    rises = []
    for cell in cells.values():
        paths = [cell.path(seed) for seed in cell.judged]
        found = [
            (least_within(path, bound), least_within([path[0], *path[1::2]], bound))
            for path in paths
        ]
        rises.append(fmean(thin - full for full, thin in found))
    return max(rises)


NOT_PLANNED = (
    ("aurora", "muon"),
    ("LoRA, one product", "LoRA, adamw"),
    ("LoRA, muon", "LoRA, adamw"),
    ("LoRA, aurora", "LoRA, muon"),
)
"""Further pairs of methods that are compared on the same base."""


def beside(cells, bound):
    """Return the paired differences at equal forgetting of `NOT_PLANNED`, by methods and base."""
    least = least_under(cells, bound, swapped=False)
    return {
        (one, other, base): paired(least[base, one], least[base, other])
        for one, other in NOT_PLANNED
        for base, method in least
        if method == one and (base, other) in least
    }


def mismatches(cells):
    """Return the cost of crossed pairs, by two optimizers and measure, where all four were run."""
    found = {}
    for one, other in (("adamw", "muon"), ("adamw", "aurora"), ("muon", "aurora")):
        weights = {(one, other): 0.5, (other, one): 0.5, (one, one): -0.5, (other, other): -0.5}
        if weights.keys() <= cells.keys():
            for name, measure in MEASURES.items():
                samples = {pair: cells[pair].at_best(measure) for pair in weights}
                found[f"{one} and {other}", name] = contrast(weights, samples)
    return found


def report(cells, console):
    """Print the tables, and the cost of each mismatch."""
    console.print(at_best_rates(cells))
    for bound in FORGETTING_BOUNDS:
        console.print(under_a_bound(cells, bound, swapped=False))
        rise = rise_by_thinning(cells, bound)
        console.print(f"every second rate left out: at most {rise:+.3f} nats/byte")
        for (one, other, base), difference in beside(cells, bound).items():
            console.print(f"{one} to {other} on {base}, <= {bound:g}: {shown(difference)}")
    for bound in LOSS_BOUNDS:
        console.print(under_a_bound(cells, bound, swapped=True))
    for (names, measure), cost in mismatches(cells).items():
        console.print(f"mismatch, {names}, {measure}: {shown(cost)} nats/byte")


STYLES = {
    "adamw": ("#555555", "o-"),
    "muon": ("#1f77b4", "s-"),
    "aurora": ("#d62728", "^:"),
    "LoRA, adamw": ("#999999", "v--"),
    "LoRA, muon": ("#9ecae1", "<--"),
    "LoRA, aurora": ("#f4a582", ">--"),
    "LoRA, one product": ("#2ca02c", "D--"),
}
"""Colour, marker and line of each fine-tuning method."""


def mean_path(cell):
    """Return forgetting and new-domain loss by rate, means over seeds."""
    paths = [cell.path(seed)[1:] for seed in cell.judged]
    points = zip(*paths, strict=True)
    return [tuple(fmean(values) for values in zip(*point, strict=True)) for point in points]


def draw(cells, path):
    """Draw new-domain loss against forgetting over the rates, a panel per base."""
    bases = list(dict.fromkeys(base for base, _ in cells))
    size = (3.6 * len(bases), 3.9)
    figure, axes = plt.subplots(1, len(bases), figsize=size, sharex=True, sharey=True)
    for axis, base in zip(axes, bases, strict=True):
        for (of, method), cell in cells.items():
            if of == base:
                color, form = STYLES[method]
                points = mean_path(cell)
                style = {"color": color, "markersize": 4, "linewidth": 1.3}
                axis.plot(*zip(*points, strict=True), form, **style, label=method)
                best = points[list(cell.judged[1]).index(cell.best)]
                axis.plot(*best, "*", color=color, markersize=13, markeredgecolor="white")
        for bound in FORGETTING_BOUNDS:
            axis.axvline(bound, color="#cccccc", linewidth=0.8, zorder=0)
        axis.set(title=f"pretrained by {base}", xlabel="forgetting (nats/byte)")
    axes[0].set(ylabel="new-domain loss (nats/byte)", yscale="log")
    axes[0].set_yticks([1, 1.2, 1.5, 2, 2.5], ["1", "1.2", "1.5", "2", "2.5"])
    axes[0].minorticks_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=150)
