"""Measures of one run that decide claims, by name, from the files in its folder."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from polarlight.diagnostics.sinks import read_json_lines
from polarlight.lab.train import history
from polarlight.lab.train.history import History

Record = dict[str, Any]

ACTIVATIONS, NEURONS, FINISHED = "activations.jsonl", "columns.jsonl", "finished.json"


def measured(folder: Path, name: str) -> float:
    """Return a measure of a finished run.

    Raises:
        KeyError: If neither this module nor the run's own `finish` knows it.
    """
    if name in MEASURES:
        return MEASURES[name](folder)
    return float(json.loads((folder / FINISHED).read_text(encoding="utf-8"))[name])


def loss(folder: Path) -> float:
    """Return the last validation loss."""
    found = history.load(folder).final_loss
    if found is None:
        raise ValueError(f"{folder} holds no finished run with a finite loss")
    return found


def _last_neurons(run: History) -> list[Record]:
    """Return the last records of tall matrices; none where an MLP has no tall matrix."""
    return list(run.neurons[-1]["layers"].values())


def _starved(reading: str, threshold: str) -> Callable[[Path], float]:
    """Return a measure: share of starved gate and up rows, mean over matrices, at the end."""
    return lambda folder: fmean(
        layer[reading]["starved"][threshold] for layer in _last_neurons(history.load(folder))
    )


def most_starved(folder: Path) -> float:
    """Return the highest share of starved gate and up rows over the samples, mean over matrices."""
    return max(
        fmean(layer["update"]["starved"]["0.1"] for layer in sample["layers"].values())
        for sample in history.load(folder).neurons
    )


def _pairs(threshold: str) -> Callable[[Path], float]:
    """Return a measure: share of neurons with all of their rows starved by the update."""

    def found(folder: Path) -> float:
        layers = _last_neurons(history.load(folder))
        single = [layer["update"]["starved"] for layer in layers if "pair" not in layer]
        pairs = [layer["pair"]["update"] for layer in layers if "pair" in layer]
        return fmean(x[threshold] for x in pairs or single)

    return found


def _of_those_ever_starved(part: str, reading: str, threshold: str) -> Callable[[Path], float]:
    """Return a measure: fraction of the ever starved rows that are in `part`; 0 if none.

    `stayed`: those that starved in every sample since. `starved`: those that starve at the end.
    """

    def found(folder: Path) -> float:
        layers = _last_neurons(history.load(folder))
        ever, some = (fmean(x[reading][key][threshold] for x in layers) for key in ("ever", part))
        return some / ever if ever else 0.0

    return found


def _silent(threshold: str) -> Callable[[Path], float]:
    """Return a measure: share of silent neurons before the down projection, mean over layers."""

    def found(folder: Path) -> float:
        *_, (_, records) = read_json_lines(folder / ACTIVATIONS)
        return fmean(record["dead"][threshold] for record in records.values())

    return found


def _down(key: str) -> Callable[[Path], float]:
    """Return a measure of the down projections' columns: spread of norms or of shares."""

    def found(folder: Path) -> float:
        *_, (_, records) = read_json_lines(folder / NEURONS)
        down = [record for name, record in records.items() if "down_proj" in name]
        if key == "weight":
            return fmean(record["weight"]["row_norm_spread"] for record in down)
        return fmean(record["update"]["spread"] for record in down)

    return found


def _mean(key: str) -> Callable[[Path], float]:
    """Return a measure: a number of the last records, mean over matrices; NaN without it."""

    def found(folder: Path) -> float:
        told = [x[key] for x in _last_neurons(history.load(folder)) if key in x]
        return fmean(told) if told else math.nan

    return found


MEASURES: Mapping[str, Callable[[Path], float]] = {
    "loss": loss,
    "starved": _starved("update", "0.1"),
    "most starved": most_starved,
    "starved rows below 0.25": _starved("update", "0.25"),
    "starved by the momentum": _starved("momentum", "0.1"),
    "starved neurons": _pairs("0.1"),
    "never recovered": _of_those_ever_starved("stayed", "update", "0.1"),
    "never recovered by the momentum": _of_those_ever_starved("stayed", "momentum", "0.1"),
    "starved in the end": _of_those_ever_starved("starved", "update", "0.1"),
    "starved in the end by the momentum": _of_those_ever_starved("starved", "momentum", "0.1"),
    "silent neurons": _silent("0.1"),
    "spread of down columns": _down("weight"),
    "spread of down updates": _down("update"),
    "update rms": _mean("rms"),
    "alignment": _mean("alignment"),
    "row norm spread": _mean("row_norm_spread"),
}
