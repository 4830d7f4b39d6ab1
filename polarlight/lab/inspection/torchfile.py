"""Files of `torch.save`, memory-mapped: weights and an optimizer's first moments."""

import pickle
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import torch
from torch import Tensor

from polarlight.lab.inspection.optimizer_state import entry_of, state_of
from polarlight.lab.inspection.source import OpenedCheckpoint, UnreadableError

MODELS = ("model", "state_dict", "model_state_dict", "module", "net")
"""Keys under which checkpoints keep a model's weights."""

TORN = (
    *(RuntimeError, EOFError, BadZipFile, OSError, ValueError, LookupError, TypeError),
    *(AttributeError, OverflowError, MemoryError, AssertionError, struct.error),
)
"""What torch's reader raises, beside UnpicklingError, for files that are none, as fuzzing found."""

OPTIMIZERS = ("optimizer", "optimizer_state_dict", "optimizer_states", "optim")


def torch_source(path: Path) -> OpenedCheckpoint:
    """Map a file of `torch.save`; tensors stay on the disk until they are used.

    Raises:
        UnreadableError: If the file is cut short, foreign, or needs more than `weights_only=True`.
    """
    content = load_mapped(path)
    weights = {name: entry_of(x) for name, x in _tensors(_model_of(content))}
    if not weights:
        raise UnreadableError(f"{path} holds no tensors; it has {_keys(content)}")
    optimizer = next((content[k] for k in OPTIMIZERS if k in content), None)
    return OpenedCheckpoint(weights, *state_of(optimizer, weights))


def load_mapped(path: Path) -> Mapping[str, Any]:
    """Return the content of the file as a dict with memory-mapped tensors.

    Raises:
        UnreadableError: As `torch_source`.
    """
    if not _is_zip(path):
        raise UnreadableError(_not_zip(path))
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnreadableError(
            f"{path} holds more than tensors and plain values, which is not loaded for safety "
            f"({_line(error)}); save its state dict alone"
        ) from error
    except TORN as error:
        raise UnreadableError(f"{path} cannot be read by torch: {_line(error)}") from error
    if not isinstance(content, Mapping):
        raise UnreadableError(f"{path} holds a {type(content).__name__}, expected a state dict")
    return content


def not_of_torch(path: Path) -> str:
    """Return why torch.save cannot have written a file; empty if nothing shows it."""
    if path.is_dir():
        return f"{path} is a folder"
    with path.open("rb") as file:
        head = file.read(4)
    old = head[:1] == b"\x80" and head[1:2] <= b"\x05"  # a pickle and its protocol
    return "" if old or _is_zip(path) else _not_zip(path)


def _is_zip(path: Path) -> bool:
    """Tell whether torch's own error message fits the file."""
    try:
        return is_zipfile(path)
    except BadZipFile:
        return True


def _not_zip(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    if head[:2] == b"PK":
        return (
            f"{path} was cut short: it starts as a file of torch.save and has no end; copy it again"
        )
    if head[:1] == b"\x80":
        return (
            f"{path} is a pickle, or a file of torch.save from before version 1.6, which cannot be "
            "read piece by piece; load it and save it again with a newer torch"
        )
    if not head:
        return f"{path} is empty"
    return f"{path} is no file of torch.save: it starts with {head!r}"


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:160] or type(error).__name__


def _keys(content: Mapping[str, Any]) -> str:
    return "the keys " + ", ".join(map(str, list(content)[:8])) if content else "no keys"


def _model_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in MODELS:
        found = content.get(key)
        if isinstance(found, Mapping):
            return found
    return {k: v for k, v in content.items() if k not in OPTIMIZERS}


def _tensors(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Return all tensors of nested dicts; keys joined by dots."""
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield f"{path}{key}", value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{path}{key}.")
