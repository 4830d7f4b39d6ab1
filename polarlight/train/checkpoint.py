"""Checkpoints of a run: written whole or not at all, read with `weights_only=True`."""

import os
import pickle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

FORMAT = "polarlight run"
VERSION = 1

Record = dict[str, Any]


class CheckpointError(ValueError):
    """The file is no checkpoint that can be used: which one, and why."""


def save(path: Path, content: Record) -> None:
    """Writes beside the file, flushes to the disk, and then takes the file's place."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, "version": VERSION, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path, device: torch.device) -> Record:
    """What `save` wrote.

    Raises:
        CheckpointError: If the file is truncated, or not a checkpoint of this format and version.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, BadZipFile, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a checkpoint ({_first_line(error)}); "
            "move it away to start this run from the beginning"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by polarlight; choose another --out")
    if content["version"] != VERSION:
        raise CheckpointError(
            f"{path} has format version {content['version']}, this polarlight reads {VERSION}"
        )
    return content


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0][:120] or type(error).__name__
