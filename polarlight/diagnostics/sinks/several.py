"""One sink that is several."""

from collections.abc import Callable, Mapping
from typing import Any

Sink = Callable[[int, dict[str, Any]], None]


def several(*sinks: Sink) -> Sink:
    """A sink that hands its records to each of these, in order."""

    def sink(step: int, records: dict[str, Mapping[str, Any]]) -> None:
        for each in sinks:
            each(step, records)

    return sink
