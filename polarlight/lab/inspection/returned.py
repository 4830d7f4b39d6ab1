"""Return of freed memory to the system, where the C library would keep it.

glibc keeps freed blocks of up to 32 MiB in its heap, and between a few that are in use a file's
worth of them can stay (`tests/lab/inspection/test_opening_memory.py`).
"""

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def return_freed_memory() -> None:
    """Return free pages to the system; do nothing without such a function in libc."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    """Return glibc's `malloc_trim`, None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
