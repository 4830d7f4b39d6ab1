"""Memory that was freed is returned to the system, where the C library would keep it.

glibc keeps freed blocks of up to 32 MiB in its heap, and between a few that are in use a file's
worth of them can stay (`tests/lab/inspection/test_memory.py`).
"""

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def return_freed_memory() -> None:
    """Returns whole free pages; does nothing where the C library has no way to."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    """`malloc_trim`, which glibc has."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
