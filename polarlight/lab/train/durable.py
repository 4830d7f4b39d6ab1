"""Files that are written atomically and sealed with a checksum.

A file is written beside its place, flushed to the disk, and renamed into it: whoever is killed
leaves the old file or the new one. A seal at the end tells damage that came later:

    content | length of the content, 8 bytes | its SHA-256, 32 bytes | "polarlight seal1"

Readers of zip files, torch among them, do not mind the seal; torch does not check the checksums
that its own files have.
"""

import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

MARK = b"polarlight seal1"
_SEAL = struct.Struct(f"<Q32s{len(MARK)}s")
_PIECE = 2**20


class Writable(Protocol):
    """File-like object that a writer receives."""

    def write(self, data: bytes, /) -> int:
        """Append data."""


class DamagedError(ValueError):
    """Error: the content of a file differs from its seal."""


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace `path` by a new file once `write` has written it and it is on the disk.

    Raises:
        OSError: If that fails, as on a full disk; `path` is as it was.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        cause = _os_error_behind(error)
        if cause is None or cause.errno is None:
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    _flush_folder(path.parent)


def _os_error_behind(error: BaseException | None) -> OSError | None:
    """Return the OSError behind an error; torch wraps that of the file it writes."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def replace_text(path: Path, text: str) -> None:
    """Replace `path` by a text in UTF-8."""
    replace(path, lambda file: file.write(text.encode()))


def replace_sealed(path: Path, write: Callable[[Writable], object]) -> None:
    """Replace `path` by a file with a seal at its end."""

    def write_and_seal(file: BinaryIO) -> None:
        counting = _Counting(file)
        write(counting)
        file.write(_SEAL.pack(counting.length, counting.digest.digest(), MARK))

    replace(path, write_and_seal)


def is_sealed(path: Path) -> bool:
    """Tell whether a file ends with a valid seal; read all of it to check.

    Raises:
        DamagedError: If there is a seal, and the content is another one.
    """
    size = path.stat().st_size - _SEAL.size
    if size < 0:
        return False
    with path.open("rb") as file:
        file.seek(size)
        length, digest, mark = _SEAL.unpack(file.read())
        if mark != MARK:
            return False
        file.seek(0)
        found = hashlib.sha256()
        for start in range(0, size, _PIECE):
            found.update(file.read(min(_PIECE, size - start)))
    if length != size or digest != found.digest():
        raise DamagedError("its content is not what was written: the checksum differs")
    return True


def flush(path: Path) -> None:
    """Wait until a file's content is on the disk; do nothing without a file."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Flush a folder so that a rename is durable, on systems that can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Counting:
    """Writer that keeps the length and checksum of its output."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.length, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes, /) -> int:
        self._file.write(data)
        self.digest.update(data)
        self.length += len(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()
