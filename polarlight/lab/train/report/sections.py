"""Sections of the report on losses, times and single matrices."""

from collections.abc import Sequence
from pathlib import Path

from polarlight.diagnostics.neurons import READINGS
from polarlight.lab.report import Block, Details, Section, Text
from polarlight.lab.train.report.album import Album
from polarlight.lab.train.report.groups import Group
from polarlight.lab.train.report.loss_figures import final_losses, last_stretch, loss_curves
from polarlight.lab.train.report.neuron_sections import NO_NEURONS, OF
from polarlight.lab.train.report.readings import readings_at_end
from polarlight.lab.train.report.tables import per_layer
from polarlight.lab.train.report.time_figures import step_times


def loss(groups: Sequence[Group], folder: Path, unit: str) -> Section:
    """Return the section on the loss over steps and seconds, and the final losses, in `unit`."""
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
        loss_curves(groups, unit=unit),
        "loss_steps",
        "Loss against steps",
        f"{how} The frame leaves out the first steps, where the loss is large.",
    )
    album.add(
        loss_curves(groups, unit=unit, clock=True),
        "loss_seconds",
        "Loss against training time",
        "The same losses against steps times the median time of a step: training alone, whatever "
        "else the machine did for a while.",
    )
    album.add(
        last_stretch(groups, unit=unit),
        "loss_end",
        "The last stretch",
        "Validation loss over the last two fifths of the steps, on a scale of its own.",
    )
    album.add(
        final_losses(groups, unit=unit),
        "loss_final",
        "Final validation loss",
        "One dot per seed, a bar at the mean. If the dots of two optimizers overlap, seeds may "
        "explain the difference."
        if several
        else "One dot per run; the spread between seeds is unknown.",
    )
    return Section("Loss", album.blocks("No loss has been recorded yet."))


def times(groups: Sequence[Group], folder: Path) -> Section:
    """Return the section on the times of a step's parts."""
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
    """Return the section with every reading at the end and starved rows per matrix."""
    blocks: list[Block] = [*readings_at_end(groups)]
    blocks += [
        Details(f"Matrix by matrix: rows below 0.1 of an equal share, by {OF[reading]}", [table])
        for reading in READINGS
        if (table := per_layer(groups, reading, 0.1)) is not None
    ]
    return Section("In the last sample", blocks or [Text(NO_NEURONS)])
