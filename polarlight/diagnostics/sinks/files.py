"""Sinks that write files: lines of JSON, and TensorBoard events by torch's writer."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from polarlight.diagnostics.sinks.records import flat
from polarlight.lookup import described


@dataclass(frozen=True, slots=True, init=False)
class JsonLines:
    """Sink that appends one line of JSON per observed step; it creates the folder.

    Attributes:
        path: The file, as text or a `Path`; kept as a `Path`. A resumed run appends to it;
            `read_json_lines` takes the last line of each step.

    Raises:
        TypeError: If the path is neither.
    """

    path: Path

    def __init__(self, path: str | PathLike[str]) -> None:
        object.__setattr__(self, "path", _path(path))

    def __call__(self, step: int, records: Mapping[str, Any]) -> None:
        """Append one line; NaN is written as NaN, which `json` reads back."""
        line = json.dumps({"step": step, "records": records}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)


def _path(path: str | PathLike[str]) -> Path:
    """Return a path given as text or `Path`; raise TypeError for anything else."""
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path must be a str or a Path, got {described(path)}")
    return Path(path)


def read_json_lines(path: str | PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield steps and records in the order of steps, without an incomplete last line."""
    found = {}
    lines = _path(path).read_text(encoding="utf-8").split("\n")
    for line in lines[:-1]:
        content = json.loads(line)
        found[content["step"]] = content["records"]
    yield from sorted(found.items())


class TensorBoard:
    """Sink that writes numbers as scalars and lists (row shares) as histograms.

    Args:
        folder: Folder of the events, or an open `SummaryWriter`.
        prefix: First part of every key.
        layers: Include curves of every matrix, beside the means.

    Raises:
        ImportError: If tensorboard is not installed; the message names the extra to install.
        TypeError: If the folder is none of these.
    """

    def __init__(self, folder: Any, prefix: str = "neurons", *, layers: bool = False) -> None:
        self.prefix, self.layers = prefix, layers
        is_path = isinstance(folder, str | PathLike)
        if not (is_path or hasattr(folder, "add_scalar")):
            raise TypeError(
                f"folder must be a str, a Path or a SummaryWriter, got {described(folder)}"
            )
        self.writer = _writer(folder) if is_path else folder

    def __call__(self, step: int, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the records of one step."""
        for name, value in flat(records, self.prefix, layers=self.layers).items():
            self.writer.add_scalar(name, value, step)
        if self.layers:
            for name, values in _lists(records, self.prefix):
                self.writer.add_histogram(name, torch.tensor(values), step)
        self.writer.flush()


def _writer(folder: str | PathLike[str]) -> Any:
    """Open a `SummaryWriter` for a folder; raise ImportError with the extra to install."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "TensorBoard needs its package: pip install 'polarlight[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder))


def _lists(tree: Mapping[str, Any], path: str) -> Iterator[tuple[str, list[float]]]:
    """Yield the path and values of every list in nested records."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _lists(value, f"{path}/{key}")
        elif isinstance(value, list) and value:
            yield f"{path}/{key}", value
