"""Curves of runs: taken from the records, smoothed, and put together over seeds."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polarlight.lab.train.history import History, Record
from polarlight.lab.train.report.measures import (
    Measure,
    latest,
    looks_of,
    mean_load,
    mean_starved,
    never_recovered,
)

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Series:
    """One quantity of one run, at its steps and the training seconds spent until then."""

    steps: Array
    seconds: Array
    values: Array


@dataclass(frozen=True, slots=True)
class Band:
    """One quantity of several runs: mean, smallest and largest at each step."""

    steps: Array
    seconds: Array
    mean: Array
    low: Array
    high: Array


def training(run: History) -> Series:
    """The training loss of each step record."""
    return _series(run, ((record["step"], record["loss"]) for record in run.steps))


def validation(run: History) -> Series:
    """The validation loss of each validation."""
    return _series(run, ((record["step"], record["loss"]) for record in run.validations))


def starved(run: History, reading: str, threshold: float) -> Series:
    """The share of starved rows, mean over matrices, of each look at the neurons."""
    return _measured(run, run.neurons, mean_starved(reading, threshold))


def reading(run: History, key: str) -> Series:
    """A reading of the glossary at each look, mean over layers."""
    return _series(run, latest(looks_of(run, key), key))


def unrecovered(run: History) -> Series:
    """Of the rows that ever starved, those that have stayed so, at each look since the first."""
    return _series(run, never_recovered(run.neurons))


def load(run: History, key: str) -> Series:
    """A number about the load of the experts, mean over layers, of each routing record."""
    return _measured(run, run.routing, mean_load(key))


def smoothed_training(run: History) -> Series:
    """The training loss, averaged over a fortieth of the records on both sides."""
    series = training(run)
    return Series(series.steps, series.seconds, smooth(series.values, len(series.values) // 40))


def smooth(values: Array, reach: int) -> Array:
    """Mean over `reach` neighbours on both sides, over as many as there are at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    here = np.arange(len(values))
    start, end = np.maximum(here - reach, 0), np.minimum(here + reach + 1, len(values))
    result: Array = (sums[end] - sums[start]) / (end - start)
    return result


def over_seeds(series: Sequence[Series]) -> Band:
    """Mean and range of runs at the steps of the first, as far as all of them reach."""
    first = max(s.steps[0] for s in series)
    last = min(s.steps[-1] for s in series)
    steps = np.array([step for step in series[0].steps if first <= step <= last])
    values = np.stack([np.interp(steps, s.steps, s.values) for s in series])
    seconds = np.stack([np.interp(steps, s.steps, s.seconds) for s in series])
    return Band(steps, seconds.mean(0), values.mean(0), values.min(0), values.max(0))


def _measured(run: History, records: Iterable[Record], measure: Measure) -> Series:
    """The number in every record that tells it."""
    found = [(record["step"], measure(record)) for record in records]
    return _series(run, ((step, value) for step, value in found if value is not None))


def _series(run: History, pairs: Iterable[tuple[float, float]]) -> Series:
    """The finite ones of (step, value), with the seconds read off the step records."""
    kept = np.array([pair for pair in pairs if math.isfinite(pair[1])], dtype=float).reshape(-1, 2)
    clock = [(0, 0.0), *((record["step"], record["seconds"]) for record in run.steps)]
    at, seconds = np.array(clock, dtype=float).T
    return Series(kept[:, 0], np.interp(kept[:, 0], at, seconds), kept[:, 1])
