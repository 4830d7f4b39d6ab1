"""Records of probes: sinks that take them, the bounded history, and a flat form for plots."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from typing import Any

from polarlight.lookup import check_callable

Record = dict[str, Any]

Sink = Callable[[int, dict[str, Record]], None]
"""Callable that takes a step and the records of that step by name."""

History = deque[tuple[int, dict[str, Record]]]
"""Steps and their records, the oldest first."""

KEPT = 1000


def new_history() -> History:
    """Return an empty history that keeps the last thousand observed steps."""
    return deque(maxlen=KEPT)


def check_sink(sink: object) -> None:
    """Raise TypeError unless a sink can be called with a step and records, or is None."""
    if sink is not None:
        check_callable(
            "sink", sink, "step, records", "polarlight.diagnostics.sinks.JsonLines('neurons.jsonl')"
        )


def send_records(
    sink: Sink | None, history: History, step: int, records: dict[str, Record]
) -> None:
    """Pass a step's records to the sink, or append them to the history if the sink is None."""
    if sink is None:
        history.append((step, records))
    else:
        sink(step, records)


def several(*sinks: Sink) -> Sink:
    """Return a sink that passes its records to each of these sinks, in order."""
    for each in sinks:
        check_sink(each)

    def sink(step: int, records: dict[str, Record]) -> None:
        for each in sinks:
            each(step, records)

    return sink


def flat(
    records: Mapping[str, Mapping[str, Any]], prefix: str = "neurons", *, layers: bool = True
) -> dict[str, float]:
    """Flatten records: `neurons/mean/update/spread` and `neurons/NAME/update/spread`; no lists.

    Args:
        records: Records of one step by name.
        prefix: First part of every key.
        layers: Include one key per name, beside the mean over the names that have the number.
    """
    found = {name: dict(_leaves(record)) for name, record in records.items()}
    keys = dict.fromkeys(key for leaves in found.values() for key in leaves)
    means = {
        f"{prefix}/mean/{key}": fmean(x[key] for x in found.values() if key in x) for key in keys
    }
    own = {f"{prefix}/{name}/{key}": x for name, ls in found.items() for key, x in ls.items()}
    return means | own if layers else means


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Yield the path and value of every number in a nested dict."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}/")
        elif isinstance(value, int | float):
            yield path + key, float(value)
