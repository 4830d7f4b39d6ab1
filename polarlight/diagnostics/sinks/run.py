"""Records into a run of Weights & Biases, trackio, or anything else with `log(dict)`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from polarlight.diagnostics.sinks.flat import flat


class Run(Protocol):
    """What a tracking service gives."""

    def log(self, metrics: dict[str, Any], /) -> None:
        """Takes numbers by name."""


@dataclass(frozen=True, slots=True)
class RunLog:
    """Logs every observed step into a run that the caller opened, and closes.

    The step is logged as `PREFIX/step` and not as the service's own: services refuse steps that go
    back, and count those of the training loop.

    Attributes:
        run: The run.
        prefix: Stands before every name.
        layers: Whether every matrix has curves of its own.
    """

    run: Run
    prefix: str = "neurons"
    layers: bool = True

    def __call__(self, step: int, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Logs one step."""
        numbers = flat(records, self.prefix, layers=self.layers)
        self.run.log({f"{self.prefix}/step": step} | numbers)
