"""CSV files of the report's numbers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from polarlight.diagnostics.neurons import READINGS
from polarlight.lab.report import write_csv
from polarlight.lab.train.history import History
from polarlight.lab.train.report.measures import (
    THRESHOLDS,
    at_end,
    last_step,
    load_at_end,
    optimizer_share,
    starved_at_end,
    status,
    step_time,
    token_rate,
)
from polarlight.lab.train.report.readings import TABLES
from polarlight.lab.train.report.series import (
    Series,
    load,
    reading,
    starved,
    training,
    validation,
)


def column_of(key: str) -> str:
    """Return a reading's column name: `update_effective` for `update/effective`."""
    return key.replace("/", "_")


_KEYS = [(name, threshold) for name in READINGS for threshold in THRESHOLDS]
_LOADS = ("variation", "entropy", "dead")
SUMMARY = (
    *("label", "seed", "status", "last_step", "tokens", "seconds"),
    *("final_loss", "last_validation_loss"),
    *(f"starved_{name}_{threshold:g}" for name, threshold in _KEYS),
    *("ms_per_step", "optimizer_share", "tokens_per_second"),
    *(column_of(key) for keys in TABLES.values() for key in keys),
)
SUMMARY_OF_EXPERTS = tuple(f"load_{key}" for key in _LOADS)
"""Columns of the summary that only mixtures of experts have."""
_TOLD = tuple(key for keys in TABLES.values() for key in keys)
CURVES = ("label", "seed", "quantity", "step", "seconds", "value")


def write_summary(histories: Sequence[History], path: Path) -> Path:
    """Write one row per run."""
    more = SUMMARY_OF_EXPERTS if any(run.routing for run in histories) else ()
    return write_csv(path, (*SUMMARY, *more), map(_summary, histories))


def write_curves(histories: Sequence[History], path: Path) -> Path:
    """Write one row per recorded value, not smoothed, without non-finite values."""
    return write_csv(path, CURVES, (row for run in histories for row in _curves(run)))


def _summary(run: History) -> dict[str, Any]:
    last = run.steps[-1] if run.steps else {}
    return {
        "label": run.label,
        "seed": run.seed,
        "status": status(run),
        "last_step": last_step(run),
        "tokens": last.get("tokens"),
        "seconds": last.get("seconds"),
        "final_loss": run.final_loss,
        "last_validation_loss": run.validations[-1]["loss"] if run.validations else None,
        **{f"starved_{r}_{t:g}": starved_at_end(run, r, t) for r, t in _KEYS},
        "ms_per_step": step_time(run),
        "optimizer_share": optimizer_share(run),
        "tokens_per_second": token_rate(run),
        **{column_of(key): at_end(run, key) for key in _TOLD},
        **{f"load_{key}": load_at_end(run, key) for key in _LOADS if run.routing},
    }


def _curves(run: History) -> Iterator[dict[str, Any]]:
    quantities: dict[str, Series] = {
        "training_loss": training(run),
        "validation_loss": validation(run),
        **{f"starved_{r}_{t:g}": starved(run, r, t) for r, t in _KEYS},
        **{column_of(key): reading(run, key) for key in _TOLD},
        **{f"load_{key}": load(run, key) for key in _LOADS},
    }
    for quantity, series in quantities.items():
        points = zip(series.steps, series.seconds, series.values, strict=True)
        for step, seconds, value in points:
            yield {
                "label": run.label,
                "seed": run.seed,
                "quantity": quantity,
                "step": int(step),
                "seconds": float(seconds),
                "value": float(value),
            }
