"""Sums over all rows of a matrix, wherever they are: what lets a map run where the rows lie.

A map that sees its matrix only row by row and through such sums gives the same result on a shard of
the rows, if the sums are completed by those who hold the others. Norms are such sums, and so is the
Gram matrix X'X of a tall X, through which polar factors are taken: n x n, however many the rows.
"""

from collections.abc import Callable
from typing import Protocol, cast

from torch import Tensor


class Rows:
    """All rows are here: partial results are complete."""

    __slots__ = ()

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


class NeedsAllRowsError(TypeError):
    """A part of the rows is not enough for a map, or for the shape of this matrix."""


class ByRows(Protocol):
    """A map that can be computed on any part of the rows."""

    def on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        """The rows [..., m, n] of the result that belong to the rows X of the matrix.

        Raises:
            NeedsAllRowsError: If that takes more than sums for a matrix of this shape.
        """


ORDINARY = (0.01, 100.0)
"""Row norms whose eighth powers, summed over any matrix, neither overflow nor vanish in float32."""


class Scaled(Protocol):
    """A map that brings its matrix to an ordinary size first, and can be spared that."""

    def of_scaled(self, X: Tensor, rows: Rows) -> Tensor:
        """As `on_rows`, for an X that may be written to, largest row norm in ORDINARY."""


def on_rows(function: Callable[[Tensor], Tensor], X: Tensor, rows: Rows) -> Tensor:
    """`function` of the matrix of which X [..., m, n] has some rows: the result's same rows.

    Raises:
        NeedsAllRowsError: If it cannot be computed so.
    """
    if rows is HERE:
        return function(X)
    if not hasattr(function, "on_rows"):
        raise NeedsAllRowsError(f"{function} cannot be computed on a part of the rows")
    return cast(ByRows, function).on_rows(X, rows)


def of_scaled(function: Callable[[Tensor], Tensor], X: Tensor, rows: Rows = HERE) -> Tensor:
    """`on_rows` for an X of ORDINARY size that the caller gives up: see `Scaled`."""
    if not hasattr(function, "of_scaled"):
        return on_rows(function, X, rows)
    return cast(Scaled, function).of_scaled(X, rows)


def check_tall(X: Tensor, rows: Rows) -> None:
    """Refuses what has no small Gram matrix that is a sum over rows.

    Raises:
        NeedsAllRowsError: Unless the whole matrix has more rows than columns.
    """
    m, n = rows.count(X), X.shape[-1]
    if m <= n:
        raise NeedsAllRowsError(
            f"rows of a {m} x {n} matrix are no tall one: its Gram matrix is XX'"
        )


def over_rows(x: Tensor, rows: Rows = HERE) -> Tensor:
    """Sum over all rows, [..., m, k] -> [..., 1, k]."""
    return rows.sum(x.sum(dim=-2, keepdim=True))
