"""Safetensors files, one tensor at a time.

    u64 length | JSON header of that length: name -> dtype, shape, [begin, end] | data

Numbers are little-endian; offsets count from the end of the header. Read here without a library, so
that a file that was cut short is told apart from one that is no safetensors file at all.
"""

import json
import math
from collections.abc import Mapping
from functools import partial
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor

from polarlight.lab.inspection.source import Entry, UnreadableError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LONGEST_HEADER = 100_000_000
"""The format's own limit."""


def safetensors_entries(path: Path) -> dict[str, Entry]:
    """The tensors of a file; only its header is read.

    Raises:
        UnreadableError: If the file is cut short, or is something else.
    """
    size = path.stat().st_size
    header, start = _header(path, size)
    entries = {}
    for name, about in header.items():
        if name != "__metadata__":
            entries[name] = _entry(path, name, about, start)
    end = start + max((about["data_offsets"][1] for about in _tensors(header)), default=0)
    if size < end:
        raise UnreadableError(
            f"{path} was cut short: its header promises {end:,} bytes, the file has {size:,}; "
            "copy or download it again"
        )
    return entries


def _tensors(header: Mapping[str, Any]) -> list[Any]:
    return [about for name, about in header.items() if name != "__metadata__"]


def _header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The header and where the data starts."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= _LONGEST_HEADER:
            raise UnreadableError(f"{path} is not a safetensors file: {_first_bytes(path)}")
        text = file.read(length)
    if len(text) < length:
        raise UnreadableError(
            f"{path} was cut short within its header, or is not a safetensors file: "
            f"{_first_bytes(path)}"
        )
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{path} is not a safetensors file: {_first_bytes(path)}") from error
    if not isinstance(header, dict):
        raise UnreadableError(f"{path} is not a safetensors file: its header is no JSON object")
    return header, 8 + length


def _first_bytes(path: Path) -> str:
    """What the file may be instead."""
    with path.open("rb") as file:
        head = file.read(40)
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if head.startswith(b"PK"):
        return "it is a zip file, perhaps of torch.save; name it .pt"
    return f"it starts with {head[:16]!r}"


def _entry(path: Path, name: str, about: Any, start: int) -> Entry:
    try:
        kind, shape = str(about["dtype"]), Size(about["shape"])
        begin, end = map(index, about["data_offsets"])
    except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise UnreadableError(f"{path}: the entry of {name} is damaged: {about}") from error
    if kind not in DTYPES:
        raise UnreadableError(f"{path}: {name} has dtype {kind}; known are {', '.join(DTYPES)}")
    dtype = DTYPES[kind]
    if begin < 0 or min(shape, default=0) < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise UnreadableError(
            f"{path}: {name} has shape {tuple(shape)} and dtype {kind}, but {end - begin} bytes"
        )
    return Entry(shape, end - begin, partial(_read, path, start + begin, end - begin, dtype, shape))


def _read(path: Path, start: int, length: int, dtype: torch.dtype, shape: Size) -> Tensor:
    if not length:
        return torch.empty(shape, dtype=dtype)
    data = bytearray(length)
    with path.open("rb") as file:
        file.seek(start)
        file.readinto(data)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)
