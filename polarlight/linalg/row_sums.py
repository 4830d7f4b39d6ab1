"""Sums over all rows of a matrix, wherever they are: what lets a map run where the rows lie.

A map that sees its matrix only row by row and through such sums gives the same result on a shard of
the rows, if the sums are completed by those who hold the others. Norms are such sums, and so is the
Gram matrix X'X of a tall X, through which polar factors are taken: n x n, however many the rows.
"""

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


ALL_ROWS = Rows()


class NeedsAllRowsError(TypeError):
    """A part of the rows is not enough for a map, or for the shape of this matrix."""


ORDINARY = (0.01, 100.0)
"""Row norms whose eighth powers, summed over any matrix, neither overflow nor vanish in float32."""


def check_tall(X: Tensor, rows: Rows) -> None:
    """Refuse what has no small Gram matrix that is a sum over rows.

    Raises:
        NeedsAllRowsError: Unless the whole matrix has more rows than columns.
    """
    m, n = rows.count(X), X.shape[-1]
    if m <= n:
        raise NeedsAllRowsError(
            f"rows of a {m} x {n} matrix are no tall one: its Gram matrix is XX'"
        )


def over_rows(x: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
    """Sum over all rows, [..., m, k] -> [..., 1, k]."""
    return rows.sum(x.sum(dim=-2, keepdim=True))
