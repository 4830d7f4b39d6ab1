"""Sums over all rows of a matrix, wherever they are: what lets a map run where the rows lie.

A map that sees its matrix only row by row and through such sums gives the same result on a shard of
the rows, if the sums are completed by those who hold the others.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows are here: partial results are complete."""

    def count(self, X: Tensor) -> int:
        """Rows of the whole matrix of which X [..., m, n] has some."""
        return X.shape[-2]

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all holders of their partial sums."""
        return x

    def max(self, x: Tensor) -> Tensor:
        """The largest, entry by entry, of what all holders found."""
        return x


HERE = Rows()


@runtime_checkable
class ByRows(Protocol):
    """A map that can be computed on any part of the rows."""

    def on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        """The rows [..., m, n] of the result that belong to the rows X of the matrix."""
