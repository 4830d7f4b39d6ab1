"""Costs of rules, counted once for all test processes that one pytest process starts.

A plan of shards needs the flops of a rule on many sizes. To count them takes a process longer than
the steps of most checks, and each process of each check would count the same.
"""

import atexit
import fcntl
import hashlib
import pickle
import shutil
import tempfile
from functools import cache, partial
from pathlib import Path

from polarlight.execution import cost
from polarlight.linalg.row_sums import NeedsAllRowsError


@cache
def folder():
    """A folder for the counts of this pytest process, removed at its end."""
    found = tempfile.mkdtemp(prefix="counts-")
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    return found


def share(into):
    """Let this process read counts from a folder, and write there those that it has to make."""
    cost.counted = partial(_counted, Path(into), cost.counted)


def _counted(into, counted, computation, *size):
    """Return what `counted` returns or raises; the first process to ask counts, the others wait.

    The key is the code of the computation with the repr of all that it reads: the rule, the sizes
    of matrix and buffers, and the number of all rows.
    """
    read = [cell.cell_contents for cell in computation.__closure__]
    key = repr((computation.__qualname__, read, size))
    if " at 0x" in key:  # a function or another value without a repr of its own
        return counted(computation, *size)
    path = into / hashlib.sha256(key.encode()).hexdigest()
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed, also by a process that dies
        file.seek(0)
        known = file.read()
        if not known:
            known = pickle.dumps(_outcome(counted, computation, size))
            file.write(known)
    found = pickle.loads(known)
    if found is None:
        raise NeedsAllRowsError
    return found


def _outcome(counted, computation, size):
    """Return the count, or None for a computation that needs all rows."""
    try:
        return counted(computation, *size)
    except NeedsAllRowsError:
        return None
