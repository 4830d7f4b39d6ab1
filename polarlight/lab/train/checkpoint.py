"""Checkpoints of a run: written atomically, sealed, read with `weights_only=True`.

Version 1 had no seal. Version 2 is sealed, and has `skipped`: the steps that parameters were left
out of since the last record. Files of older versions are brought up to date when they are read.
"""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch

from polarlight.lab.inspection.torchfile import TORN
from polarlight.lab.train import durable

FORMAT = "polarlight run"
VERSION = 2

Record = dict[str, Any]

MIGRATIONS: dict[int, Callable[[Record], Record]] = {
    1: lambda content: content | {"version": 2, "skipped": {}},
}
"""By version, what makes the next one of it."""


class CheckpointError(ValueError):
    """Error: a file is not a usable checkpoint; names it and the reason."""


def save(path: Path, content: Record) -> None:
    """Write the checkpoint to a temporary file, flush it, and rename it into place."""
    record = {"format": FORMAT, "version": VERSION, **content}
    durable.replace_sealed(path, lambda file: torch.save(record, cast(IO[bytes], file)))


def load(path: Path, device: torch.device) -> Record:
    """Load what `save` wrote, of this or an older version.

    Raises:
        CheckpointError: If the file is truncated or damaged, or not a checkpoint of this format, or
            of a later version.
    """
    try:
        sealed = durable.is_sealed(path)
        with warnings.catch_warnings(action="ignore"):  # what is wrong is said below
            content = torch.load(path, map_location=device, weights_only=True)
    except (*TORN, pickle.UnpicklingError, durable.DamagedError) as error:
        raise _damaged(path, _first_line(error)) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by polarlight; choose another --out")
    version = content.get("version")
    if not isinstance(version, int) or not (version == VERSION or version in MIGRATIONS):
        raise CheckpointError(
            f"{path} has format version {version}, this polarlight reads 1 to {VERSION}"
        )
    if version >= 2 and not sealed:
        raise _damaged(path, "its seal is missing")
    record: Record = content
    while record["version"] != VERSION:
        record = MIGRATIONS[record["version"]](record)
    return record


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is truncated, damaged or not a checkpoint ({why}); "
        "move it away to start this run from the beginning"
    )


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0][:120] or type(error).__name__
