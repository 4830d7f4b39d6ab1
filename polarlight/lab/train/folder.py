"""Folder of a run: locked by one process and tied to the run's settings.

The settings are written first, and compared ever after.
"""

import json
from pathlib import Path
from typing import Any

from polarlight.lab.train import durable
from polarlight.lab.train.lock import FolderLock

Record = dict[str, Any]


class SettingsError(ValueError):
    """Error: the folder holds a run with other settings."""


def claim(folder: Path, settings: Record) -> FolderLock:
    """Make and lock the folder, and write `settings.json` or compare with it.

    Returns:
        The lock, to be released when the run is over.

    Raises:
        FolderInUseError: If another process trains there.
        SettingsError: If it holds other settings, or none that can be read.
    """
    lock = FolderLock(folder)
    try:
        _write_or_compare(folder, settings)
    except (ValueError, OSError):
        lock.release()
        raise
    return lock


def _write_or_compare(folder: Path, settings: Record) -> None:
    wanted = json.loads(json.dumps(settings))
    path = folder / "settings.json"
    if not path.exists():
        durable.replace_text(path, json.dumps(wanted, indent=2))
    there = _settings_in(path)
    if there != wanted:
        raise SettingsError(
            f"{folder} holds a run with other settings ({differences(there, wanted)}"
            "); choose another --out, or --overwrite it"
        )


def _settings_in(path: Path) -> Record:
    """Return the settings in a folder."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is damaged ({error}); move the folder away") from error
    if not isinstance(settings, dict):
        raise SettingsError(f"{path} holds no settings; move the folder away")
    return settings


def differences(a: Record, b: Record) -> str:
    """Return `key: old -> new` for every leaf that differs; `absent` for a missing key."""
    found = []
    for key in sorted(a.keys() | b.keys()):
        old, new = a.get(key, "absent"), b.get(key, "absent")
        if isinstance(old, dict) and isinstance(new, dict):
            found += [inner] if (inner := differences(old, new)) else []
        elif old != new:
            found.append(f"{key}: {old} -> {new}")
    return ", ".join(found)
