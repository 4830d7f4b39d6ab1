"""Safetensors files, read by their own library, one tensor at a time."""

from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Size, Tensor

from polarlight.lab.inspection.finite import PIECE
from polarlight.lab.inspection.source import Entry, UnreadableError

_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F16": 2, "BF16": 2, "I16": 2}
_BYTES |= {"U16": 2, "F32": 4, "I32": 4, "U32": 4, "F64": 8, "I64": 8, "U64": 8}


def safetensors_entries(path: Path) -> dict[str, Entry]:
    """Return the tensors of a file; only its header is read.

    Raises:
        UnreadableError: If the file is cut short, or is something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            about = {name: (s.get_dtype(), Size(s.get_shape())) for name, s in slices.items()}
    except (SafetensorError, OverflowError, RuntimeError) as error:
        raise UnreadableError(_reason(path, error)) from error
    unknown = {name: dtype for name, (dtype, _) in about.items() if dtype not in _BYTES}
    if unknown:
        name, dtype = next(iter(unknown.items()))
        raise UnreadableError(f"{path}: {name} has dtype {dtype}; known are {', '.join(_BYTES)}")
    return {
        name: Entry(
            shape,
            _BYTES[dtype] * prod(shape),
            partial(_read, path, name),
            partial(_pieces, path, name, shape),
        )
        for name, (dtype, shape) in about.items()
    }


def _read(path: Path, name: str) -> Tensor:
    """Read one tensor into memory of its own: the file may change or go."""
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor.clone(memory_format=torch.contiguous_format)


def _pieces(path: Path, name: str, shape: Size) -> Iterator[Tensor]:
    """Read one tensor by slices of its first dimension."""
    with safe_open(path, framework="pt") as file:
        if len(shape) < 2 or not prod(shape):
            yield file.get_tensor(name)
            return
        tensor, rows = file.get_slice(name), max(1, PIECE // prod(shape[1:]))
        for start in range(0, shape[0], rows):
            yield tensor[start : start + rows]


def _reason(path: Path, error: Exception) -> str:
    """Say whether the file was cut short, or what it may be instead of safetensors."""
    with path.open("rb") as file:
        head = file.read(40)
    if head.startswith(b"version https://git-lfs"):
        return (
            f"{path} is not a safetensors file: it is a Git LFS pointer; fetch the file itself "
            "with `git lfs pull`"
        )
    if head.startswith(b"PK"):
        return (
            f"{path} is not a safetensors file: it is a zip file, perhaps of torch.save; "
            "name it .pt"
        )
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and ("not fully covered" in str(error) or "header length" in str(error)):
        size = path.stat().st_size
        where = " within its header" if size < 8 + length else ""
        return f"{path} was cut short{where}, at {size:,} bytes; copy or download it again"
    return f"{path} is not a safetensors file ({error}): it starts with {head[:16]!r}"
