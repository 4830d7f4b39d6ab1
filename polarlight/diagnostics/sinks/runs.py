"""Sinks that log into a run of Weights & Biases, trackio, or anything else with `log(dict)`."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from polarlight.diagnostics.sinks.records import flat


class TrackedRun(Protocol):
    """Run of a tracking service."""

    def log(self, metrics: dict[str, Any], /) -> None:
        """Log numbers by name."""


@dataclass(frozen=True, slots=True)
class RunLog:
    """Sink that logs every observed step into a run that the caller opens and closes.

    The step is logged as `PREFIX/step` and not as the service's own: services refuse steps that go
    back, and count those of the training loop.

    Attributes:
        run: The run.
        prefix: First part of every key.
        layers: Include curves of every matrix, beside the means.
    """

    run: TrackedRun
    prefix: str = "neurons"
    layers: bool = False

    def __call__(self, step: int, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Log the records of one step."""
        numbers = flat(records, self.prefix, layers=self.layers)
        self.run.log({f"{self.prefix}/step": step} | numbers)


def trackio(
    run: Any = None, prefix: str = "neurons", *, layers: bool = False, **settings: Any
) -> RunLog:
    """Return a sink into a run of trackio; the client's files stay on this machine.

    Args:
        run: Result of `trackio.init(...)`; None calls it with `settings`.
        prefix: First part of every key.
        layers: Include curves of every matrix, beside the means.
        settings: `project` and other arguments of `trackio.init`.

    Raises:
        ImportError: If trackio is not installed; the message names the extra to install.
    """
    return RunLog(_client("trackio").init(**settings) if run is None else run, prefix, layers)


def wandb(run: Any = None, prefix: str = "neurons", *, layers: bool = False) -> RunLog:
    """Return a sink into a run of Weights & Biases, with curves over the optimizer's steps.

    Args:
        run: Result of `wandb.init(...)` (`mode="offline"` needs no network); None takes the run
            that is open.
        prefix: First part of every key.
        layers: Include curves of every matrix, beside the means.

    Raises:
        ImportError: If wandb is not installed; the message names the extra to install.
        ValueError: If there is no run.
    """
    if run is None:
        run = _client("wandb").run
        if run is None:
            raise ValueError("no run of Weights & Biases is open; call wandb.init(...) first")
    run.define_metric(f"{prefix}/step")
    run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")
    return RunLog(run, prefix, layers)


def _client(package: str) -> Any:
    """Import the client of a tracking service."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"the sink {package} needs its client: pip install 'polarlight[{package}]'"
        ) from error
