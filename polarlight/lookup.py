"""Names that people type: found in a table, or refused with the nearest that is known."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


def look_up(name: str, known: Mapping[str, T], thing: str) -> T:
    """The entry of this name.

    Raises:
        ValueError: If there is none; the message lists the known names and gives the nearest.
    """
    if name not in known:
        raise unknown(name, known, f"unknown {thing}")
    return known[name]


def unknown(name: str, known: Iterable[str], what: str) -> ValueError:
    """The error: what is wrong with the name, the nearest known one, all of them."""
    names = list(known)
    near = get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{what} {name!r}.{hint} Known: {', '.join(names)}")
