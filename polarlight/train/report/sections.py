"""Sections of the report: figures and tables with the words around them."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from polarlight.report import Block, Details, Grid, Picture, Section, Text, picture
from polarlight.train.report.groups import Group
from polarlight.train.report.loss_figures import final_losses, last_stretch, loss_curves
from polarlight.train.report.measures import READINGS
from polarlight.train.report.neuron_figures import (
    share_histograms,
    spectra_at_end,
    spread_over_time,
    starved_over_time,
)
from polarlight.train.report.tables import per_layer
from polarlight.train.report.time_figures import step_times

NO_NEURONS = "No neuron was looked at: the model has no tall matrix, or the runs ended too early."
_OF = {
    "update": "the update",
    "momentum": "the momentum",
}


def _missing(groups: Sequence[Group]) -> str:
    """A sentence for what is recorded in the last step alone."""
    cut_short = any(not group.finished for group in groups)
    return " Optimizers without a finished run have not recorded this." if cut_short else ""


class Album:
    """Saves figures into the folder of the report and collects them for a grid."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures: list[Picture] = []

    def add(self, new: Figure | None, name: str, title: str, caption: str) -> None:
        """Saves a figure; if there is none, one that an earlier report left is removed."""
        if new is None:
            (self.folder / f"{name}.png").unlink(missing_ok=True)
        else:
            self.pictures.append(picture(new, self.folder, name, title=title, caption=caption))

    def blocks(self, otherwise: str) -> list[Block]:
        """The grid of pictures, or a sentence that says why there are none."""
        return [Grid(self.pictures)] if self.pictures else [Text(otherwise)]


def loss(groups: Sequence[Group], folder: Path) -> Section:
    """Loss against steps and seconds, the last stretch, and the final losses."""
    album = Album(folder)
    several = any(len(group.finished) > 1 for group in groups)
    how = "Points: validation"
    how += ", mean over seeds; band: smallest to largest seed." if several else "."
    how += " Faint: training loss, smoothed."
    if any(group.cut_short for group in groups):
        how += (
            " Thin, with a cross or a circle at the end: a run that was stopped or is unfinished."
        )
    album.add(
        loss_curves(groups),
        "loss_steps",
        "Loss against steps",
        f"{how} The frame leaves out the first steps, where the loss is large.",
    )
    album.add(
        loss_curves(groups, clock=True),
        "loss_seconds",
        "Loss against training time",
        "The same losses against seconds of training, without validation and measurements.",
    )
    album.add(
        last_stretch(groups),
        "loss_end",
        "The last stretch",
        "Validation loss over the last two fifths of the steps, on a scale of its own.",
    )
    album.add(
        final_losses(groups),
        "loss_final",
        "Final validation loss",
        "One dot per seed, a bar at the mean. Where the dots of two optimizers mix, the seeds "
        "explain as much as the optimizers do."
        if several
        else "One dot per run. How far other seeds would scatter is not known.",
    )
    return Section("Loss", album.blocks("No loss has been recorded yet."))


def neurons(groups: Sequence[Group], folder: Path) -> Section:
    """The share of starved rows over time, by both readings."""
    album = Album(folder)
    for reading in READINGS:
        album.add(
            starved_over_time(groups, reading),
            f"starved_{reading}",
            f"Starved rows, by {_OF[reading]}",
            "Share of the rows of tall matrices below the threshold, mean over matrices. "
            "One scale for all panels; lines at zero cover each other.",
        )
    if not album.pictures:
        return Section("Starved neurons", album.blocks(NO_NEURONS))
    words = (
        "A row of a tall matrix holds the weights of one neuron, and it is starved in a step that "
        "gives it less than a tenth, or a hundredth, of an equal share. By the update, this is the "
        "row's share of the squared update itself, whatever the optimizer; by the momentum, it is "
        "the row's leverage in the momentum matrix times m/n, the share that plain Muon would give."
    )
    return Section("Starved neurons", [Text(words), *album.blocks("")])


def shares(groups: Sequence[Group], folder: Path) -> Section:
    """Histograms of the rows' shares at the end."""
    album = Album(folder)
    for reading in READINGS:
        album.add(
            share_histograms(groups, reading),
            f"shares_{reading}",
            f"Share of each row, by {_OF[reading]}",
            "All rows of all tall matrices in the last step. Right of the dashed line at 0.1: fed; "
            "left: starved. The leftmost bar holds what is below 10⁻⁴, zeros included; each panel "
            f"has its own height.{_missing(groups)}",
        )
    missing = "No run has recorded the shares of single rows; that happens in its last step."
    return Section("Rows at the end", album.blocks(missing))


def spectra(groups: Sequence[Group], folder: Path) -> Section:
    """Spread of the row norms over time and singular values at the end."""
    album = Album(folder)
    album.add(
        spread_over_time(groups),
        "row_norm_spread",
        "Spread of the update's row norms",
        "Standard deviation over mean of the row norms of tall matrices, mean over matrices. "
        "Zero: all rows are moved by the same length.",
    )
    album.add(
        spectra_at_end(groups),
        "singular_values",
        "Singular values of the update",
        "Tall matrices in the last step, largest value first; line: mean over matrices, band: "
        "smallest to largest. Flat at one: all directions are moved equally, as by a polar "
        f"factor.{_missing(groups)}",
    )
    return Section("Shape of the update", album.blocks(NO_NEURONS))


def times(groups: Sequence[Group], folder: Path) -> Section:
    """Where the time of a step goes."""
    album = Album(folder)
    album.add(
        step_times(groups),
        "step_time",
        "Milliseconds per step",
        "Median of each part over the run, mean over seeds; at the end of the bar, the sum of "
        "these, which is close to the median of the whole step in the first table.",
    )
    return Section("Time per step", album.blocks("No step has been timed yet."))


def layers(groups: Sequence[Group]) -> Section:
    """The share of starved rows of every matrix."""
    tables = [(reading, per_layer(groups, reading, 0.1)) for reading in READINGS]
    blocks: list[Block] = [
        Details(f"Rows below 0.1 of an equal share at the end, by {_OF[reading]}", [table])
        for reading, table in tables
        if table is not None
    ]
    return Section("Matrix by matrix", blocks or [Text(NO_NEURONS)])
