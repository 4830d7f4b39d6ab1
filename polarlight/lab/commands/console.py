"""Console of the commands; errors that the user can fix are one line.

`OneLineErrors` is the class of the whole command line: whatever a command raises passes through
it. Thus no command catches errors by itself.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import typer
from rich.console import Console
from typer.core import TyperGroup

_PIPED = 160
"""Columns where output is not a terminal, so that tables stay whole."""

_MENDABLE = (ValueError, ImportError, OSError, MemoryError, torch.OutOfMemoryError)
"""Errors of arguments, files and sizes. Any other error is ours and keeps its traceback."""

_ALLOCATOR = "DefaultCPUAllocator: "
"""Marks the RuntimeError that torch raises where the host has no memory left."""

_WAYS_OUT = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EISDIR: "it is a folder, expected a file",
    errno.ENOTDIR: "a part of this path is a file, expected a folder",
    errno.EEXIST: "it is there already; choose another name",
    errno.ENOENT: "it does not exist",
    errno.EACCES: "permission denied; choose another place, or change its permissions",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EFBIG: "the file is larger than is allowed here; choose another place",
}

console = Console()
if not console.is_terminal:
    console = Console(width=_PIPED)


def say(text: str) -> None:
    """Print text as it is, without wrapping."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class OneLineErrors(TyperGroup):
    """Command group that prints errors that the user can fix as one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the named command."""
        with plain_errors():
            return super().invoke(ctx)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print an error that the user can fix as one line on stderr; exit with status 2.

    Of the processes under torchrun the first one alone prints.
    """
    try:
        yield
    except (*_MENDABLE, RuntimeError) as error:
        if not is_mendable(error):
            raise
        if os.environ.get("RANK", "0") == "0":
            sys.stdout.flush()
            line = f"error: {in_one_line(error)}"
            Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from None


def is_mendable(error: Exception) -> bool:
    """Tell whether an error comes from arguments, files or sizes, not from a bug."""
    if isinstance(error, OSError):
        return error.errno != errno.EPIPE  # the reader of a pipe has left: click ends quietly
    return isinstance(error, _MENDABLE) or _ALLOCATOR in str(error)


def in_one_line(error: Exception) -> str:
    """Return the error's message and its hint, without line breaks."""
    if isinstance(error, OSError) and error.errno is not None:
        said = _WAYS_OUT.get(error.errno) or error.strerror or str(error)
        text = f"{error.filename}: {said}" if error.filename else said
    elif isinstance(error, UnicodeDecodeError):
        text = f"a file that should hold text holds other bytes ({error})"
    elif isinstance(error, MemoryError | torch.OutOfMemoryError) or _ALLOCATOR in str(error):
        told = str(error).strip().partition("\n")[0].rpartition(_ALLOCATOR)[2]
        text = f"memory does not suffice ({told or 'MemoryError'}); choose smaller sizes"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())
