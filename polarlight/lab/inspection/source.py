"""Checkpoint as inspection reads it: names, shapes, and tensors on demand."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Size, Tensor


class UnreadableError(ValueError):
    """Error: a file or folder is not a readable checkpoint; names it, the reason and the fix."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Tensor that can be read on demand.

    Attributes:
        shape: Its shape.
        bytes: What it takes in memory.
        read: Reads it, each time anew.
        pieces: Reads it piece by piece, where that takes less memory; None if it does not.
    """

    shape: Size
    bytes: int
    read: Callable[[], Tensor]
    pieces: Callable[[], Iterator[Tensor]] | None = None


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """Opened checkpoint.

    Attributes:
        weights: Model tensors by name.
        momenta: First moments of the optimizer, by the name of their parameter.
        scales: Row scales that Aurora kept, by the name of their parameter.
        notes: What the reader should know: what was left out, and why.
    """

    weights: Mapping[str, Entry]
    momenta: Mapping[str, Entry] = field(default_factory=dict)
    scales: Mapping[str, Entry] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
