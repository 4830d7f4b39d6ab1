"""Numbers of one run from its records; None where the records have none."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from polarlight.diagnostics import starvation
from polarlight.lab.report.glossary import ACTIVATIONS
from polarlight.lab.train.history import History, Record

THRESHOLDS = tuple(sorted(starvation.THRESHOLDS, reverse=True))
"""Fractions of an equal share that the report counts rows below, the largest first."""

Measure = Callable[[Record], float | None]


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def last_step(run: History) -> int:
    """Return the last step with a record."""
    records = (*run.steps[-1:], *run.validations[-1:], *run.neurons[-1:], *run.activations[-1:])
    return max((record["step"] for record in records), default=0)


def status(run: History) -> str:
    """Return in words how the run ended."""
    if run.stopped is not None:
        return f"stopped: {run.stopped}"
    if not run.finished:
        reached = f" (loss {run.validations[-1]['loss']:.4f})" if run.validations else ""
        return f"unfinished at step {last_step(run)}{reached}"
    if run.final_loss is None:
        return "finished, without a validation"
    return "finished" if math.isfinite(run.final_loss) else "finished, with a non-finite loss"


def final_loss(run: History) -> float | None:
    """Return the last validation loss of a run that finished with a finite one."""
    loss = run.final_loss
    return loss if loss is not None and math.isfinite(loss) else None


def starved_in(layer: Record, reading: str, threshold: float) -> float:
    """Return the share of starved rows of one matrix."""
    return float(layer[reading]["starved"][f"{threshold:g}"])


def mean_starved(reading: str, threshold: float) -> Measure:
    """Return a function: share of starved rows in a neuron record, mean over matrices."""
    return lambda record: mean(
        starved_in(layer, reading, threshold) for layer in record["layers"].values()
    )


def number_at(layer: Record, key: str) -> float | None:
    """Return the number at a path like `update/starved/0.1`; None without it."""
    found: Any = layer
    for word in key.split("/"):
        if not isinstance(found, Mapping) or word not in found:
            return None
        found = found[word]
    return float(found)


def records_with(run: History, key: str) -> list[Record]:
    """Return the neuron records, or the activation records if the key is one of theirs."""
    return run.activations if key in ACTIVATIONS else run.neurons


def latest(records: Iterable[Record], key: str) -> Iterator[tuple[int, float]]:
    """Return step and mean over layers of each record that has the reading.

    Some are measured of a few layers per sample, in turn: the latest number of each layer counts.
    """
    known: dict[str, float] = {}
    for record in records:
        new = {name: number_at(layer, key) for name, layer in record["layers"].items()}
        told = {name: value for name, value in new.items() if value is not None}
        known |= told
        if told:
            yield record["step"], fmean(known.values())


def at_end(run: History, key: str) -> float | None:
    """Return a reading in the last record, mean over layers; None without it."""
    values = [value for _, value in latest(records_with(run, key), key)]
    return values[-1] if values else None


def never_recovered(records: Iterable[Record]) -> Iterator[tuple[int, float]]:
    """Return the fraction of ever starved rows that starved in every record since."""
    ever = dict(latest(records, "update/ever/0.1"))
    for step, stayed in latest(records, "update/stayed/0.1"):
        if ever.get(step):
            yield step, stayed / ever[step]


def last_neurons(run: History) -> Record | None:
    """Return the last neuron record that has a matrix."""
    return next((record for record in reversed(run.neurons) if record["layers"]), None)


def last_routing(run: History) -> Record | None:
    """Return the last routing record."""
    return run.routing[-1] if run.routing else None


def last_full(run: History) -> Record | None:
    """Return the last neuron record with row shares and singular values."""
    return next((record for record in reversed(run.neurons) if _is_full(record)), None)


def _is_full(record: Record) -> bool:
    return any("shares" in layer["update"] for layer in record["layers"].values())


def starved_at_end(run: History, reading: str, threshold: float) -> float | None:
    """Return the share of starved rows in the last neuron record, mean over matrices."""
    record = last_neurons(run)
    return None if record is None else mean_starved(reading, threshold)(record)


def mean_load(key: str) -> Measure:
    """Return a function: a number of a routing record, mean over layers."""
    return lambda record: mean(float(layer[key]) for layer in record["layers"].values())


def load_at_end(run: History, key: str) -> float | None:
    """Return a number of the last routing record, mean over layers."""
    record = last_routing(run)
    return None if record is None else mean_load(key)(record)


def part_times(run: History) -> dict[str, float]:
    """Return median milliseconds per step of each part of the step."""
    parts = dict.fromkeys(part for record in run.steps for part in record["time"])
    spans = _spans(run)
    return {part: median(r["time"].get(part, 0.0) / n for n, r in spans) * 1e3 for part in parts}


def step_time(run: History) -> float | None:
    """Return median milliseconds per step."""
    times = [sum(record["time"].values()) / steps for steps, record in _spans(run)]
    return median(times) * 1e3 if times else None


def optimizer_share(run: History) -> float | None:
    """Return the median share of the optimizer in the time of a step."""
    totals = [(r["time"].get("optimizer", 0.0), sum(r["time"].values())) for r in run.steps]
    shares = [part / total for part, total in totals if total > 0]
    return median(shares) if shares else None


def token_rate(run: History) -> float | None:
    """Return median tokens per training second between step records."""
    start: Record = {"tokens": 0, "seconds": 0.0}
    gains = [
        (b["tokens"] - a["tokens"], b["seconds"] - a["seconds"])
        for a, b in pairwise([start, *run.steps])
    ]
    rates = [tokens / seconds for tokens, seconds in gains if seconds > 0]
    return median(rates) if rates else None


def _spans(run: History) -> list[tuple[int, Record]]:
    """Return each step record with the number of steps since the one before."""
    steps = [0, *(record["step"] for record in run.steps)]
    spans = [after - before for before, after in pairwise(steps)]
    return [(span, record) for span, record in zip(spans, run.steps, strict=True) if span > 0]
