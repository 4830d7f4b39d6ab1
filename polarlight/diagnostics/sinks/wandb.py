"""Weights & Biases, through its own client; needs the package `wandb`."""

from importlib import import_module
from typing import Any

from polarlight.diagnostics.sinks.run import RunLog


def wandb(run: Any = None, prefix: str = "neurons", *, layers: bool = True) -> RunLog:
    """A sink into a run of Weights & Biases, with curves over the optimizer's steps.

    Args:
        run: What `wandb.init(...)` returned (`mode="offline"` needs no network); None takes the run
            that is open.
        prefix: Stands before every name.
        layers: Whether every matrix has curves of its own.

    Raises:
        ImportError: If wandb is not installed; the message says how to get it.
        ValueError: If there is no run.
    """
    if run is None:
        run = _open_run()
    run.define_metric(f"{prefix}/step")
    run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")
    return RunLog(run, prefix, layers)


def _open_run() -> Any:
    try:
        client = import_module("wandb")
    except ImportError as error:
        raise ImportError(
            "Weights & Biases needs its client: pip install 'polarlight[wandb]'"
        ) from error
    if client.run is None:
        raise ValueError("no run of Weights & Biases is open; call wandb.init(...) first")
    return client.run
