"""Lock file of a run's folder: one process per run.

The lock belongs to the open file and not to its existence. The system releases it when the process
ends, killed or not: a file that is left behind stops nobody. Systems without `fcntl` have no lock.
"""

import errno
import os
import weakref
from importlib import import_module
from pathlib import Path

NAME = "lock"
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Error numbers of file systems without locks."""


class FolderInUseError(ValueError):
    """Error: another process trains in the folder."""


class FolderLock:
    """Lock on a folder until `release`, garbage collection or the end of the process.

    Args:
        folder: The folder of a run; it is created.

    Raises:
        FolderInUseError: If another process, or another run of this one, holds it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / NAME
        descriptor = _open_locked(path)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self.release = weakref.finalize(self, _release, path, descriptor, os.getpid())
        """Lets other processes in; nothing if that is done already."""


def _open_locked(path: Path) -> int:
    """Return a locked descriptor of the file; retry if its last holder removed it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor)
        except OSError as error:
            holder = os.read(descriptor, 20).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno not in _TAKEN:
                raise
            raise FolderInUseError(
                f"{path.parent} is in use: process {holder or '(unknown)'} trains there; wait for "
                "it, stop it, or choose another --out"
            ) from None
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock the open file or raise; do nothing on systems without locks."""
    try:
        fcntl = import_module("fcntl")
    except ModuleNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _release(path: Path, descriptor: int, holder: int) -> None:
    """Remove the locked file, then unlock it; do nothing in a forked copy."""
    if os.getpid() == holder:
        path.unlink(missing_ok=True)
    os.close(descriptor)
