"""The command of a benchmark, as its result file keeps it."""

import shlex
from collections.abc import Sequence

_PATHS = ("--out", "--momenta")
"""Options whose value is a place on one machine."""


def recorded_command(module: str, arguments: Sequence[str]) -> str:
    """Return the command line without the options that name a place on this machine."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument.split("=")[0] not in _PATHS:
            kept.append(argument)
        skip = argument in _PATHS
    return shlex.join(["python", "-m", module, *kept])
