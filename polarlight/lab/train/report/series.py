"""Curves of runs: taken from records, smoothed, and averaged over seeds."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polarlight.lab.train.history import History, Record
from polarlight.lab.train.report.measures import (
    Measure,
    latest,
    mean_load,
    mean_starved,
    never_recovered,
    records_with,
)

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Series:
    """One quantity of one run, at its steps and training seconds."""

    steps: Array
    seconds: Array
    values: Array


@dataclass(frozen=True, slots=True)
class SeedBand:
    """One quantity of several runs: mean, smallest and largest at each step."""

    steps: Array
    seconds: Array
    mean: Array
    low: Array
    high: Array


def training(run: History) -> Series:
    """Return the training loss of each step record."""
    return _series(run, ((record["step"], record["loss"]) for record in run.steps))


def validation(run: History) -> Series:
    """Return the validation loss of each validation."""
    return _series(run, ((record["step"], record["loss"]) for record in run.validations))


def starved(run: History, reading: str, threshold: float) -> Series:
    """Return the share of starved rows, mean over matrices, of each neuron record."""
    return _measured(run, run.neurons, mean_starved(reading, threshold))


def reading(run: History, key: str) -> Series:
    """Return a reading of the glossary in each record, mean over layers."""
    return _series(run, latest(records_with(run, key), key))


def unrecovered(run: History) -> Series:
    """Return the fraction of ever starved rows that never recovered, per record."""
    return _series(run, never_recovered(run.neurons))


def load(run: History, key: str) -> Series:
    """Return a number of each routing record, mean over layers."""
    return _measured(run, run.routing, mean_load(key))


def smoothed_training(run: History) -> Series:
    """Return the training loss, averaged over a fortieth of the records on both sides."""
    series = training(run)
    return Series(series.steps, series.seconds, smooth(series.values, len(series.values) // 40))


def smooth(values: Array, reach: int) -> Array:
    """Return the mean over `reach` neighbours on both sides, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    here = np.arange(len(values))
    start, end = np.maximum(here - reach, 0), np.minimum(here + reach + 1, len(values))
    result: Array = (sums[end] - sums[start]) / (end - start)
    return result


def over_seeds(series: Sequence[Series]) -> SeedBand:
    """Return mean and range of runs at the first run's steps, as far as all runs reach."""
    first = max(s.steps[0] for s in series)
    last = min(s.steps[-1] for s in series)
    steps = np.array([step for step in series[0].steps if first <= step <= last])
    values = np.stack([np.interp(steps, s.steps, s.values) for s in series])
    seconds = np.stack([np.interp(steps, s.steps, s.seconds) for s in series])
    return SeedBand(steps, seconds.mean(0), values.mean(0), values.min(0), values.max(0))


def _measured(run: History, records: Iterable[Record], measure: Measure) -> Series:
    """Return the number in every record that has it."""
    found = [(record["step"], measure(record)) for record in records]
    return _series(run, ((step, value) for step, value in found if value is not None))


def _series(run: History, pairs: Iterable[tuple[float, float]]) -> Series:
    """Build a series from finite (step, value), with seconds from the step records."""
    kept = np.array([pair for pair in pairs if math.isfinite(pair[1])], dtype=float).reshape(-1, 2)
    clock = [(0, 0.0), *((record["step"], record["seconds"]) for record in run.steps)]
    at, seconds = np.array(clock, dtype=float).T
    return Series(kept[:, 0], np.interp(kept[:, 0], at, seconds), kept[:, 1])
