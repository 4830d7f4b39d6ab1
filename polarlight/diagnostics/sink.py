"""Where a probe's records go: to a sink, or into a history of bounded length."""

from collections import deque
from collections.abc import Callable
from typing import Any

Record = dict[str, Any]

Sink = Callable[[int, dict[str, Record]], None]
"""Called with the step and the records by name; see `polarlight.diagnostics.sinks`."""

History = deque[tuple[int, dict[str, Record]]]
"""Steps and records, the oldest first."""

KEPT = 1000


def new_history() -> History:
    """An empty history of the last thousand observed steps."""
    return deque(maxlen=KEPT)


def hand_over(sink: Sink | None, history: History, step: int, records: dict[str, Record]) -> None:
    """Records to the sink, or to the history where there is none."""
    if sink is None:
        history.append((step, records))
    else:
        sink(step, records)
