"""trackio, through its own client; needs the package `trackio`."""

from importlib import import_module
from typing import Any

from polarlight.diagnostics.sinks.run import RunLog


def trackio(
    run: Any = None, prefix: str = "neurons", *, layers: bool = True, **settings: Any
) -> RunLog:
    """A sink into a run of trackio; the client's files stay on this machine.

    Args:
        run: What `trackio.init(...)` returned; None calls it with `settings`.
        prefix: Stands before every name.
        layers: Whether every matrix has curves of its own.
        settings: `project` and other arguments of `trackio.init`.

    Raises:
        ImportError: If trackio is not installed; the message says how to get it.
    """
    if run is None:
        try:
            client = import_module("trackio")
        except ImportError as error:
            raise ImportError(
                "trackio needs its client: pip install 'polarlight[trackio]'"
            ) from error
        run = client.init(**settings)
    return RunLog(run, prefix, layers)
