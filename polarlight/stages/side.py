"""Shapes that a row method takes; wide matrices are transposed for it where asked."""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from polarlight.linalg.properties import (
    Invariants,
    Symmetries,
    mirror_invariants,
    mirror_symmetries,
)
from polarlight.linalg.row_sums import NeedsAllRowsError, Rows
from polarlight.linalg.slot import Buffers, Rescaling, Slot, Stage
from polarlight.lookup import check_object
from polarlight.registry import loadable, registered


@loadable
class Side(Enum):
    """Matrices that a row method touches; the others keep the plain map.

    TALL:      rows of tall matrices (gate and up projections): the paper and its author.
    WIDE:      columns of wide matrices (down projections): track 3's records.
    LONG_AXIS: both, whichever axis is longer: what the Aurora release's code does.
    """

    TALL = "tall"
    WIDE = "wide"
    LONG_AXIS = "long_axis"

    def touches(self, m: int, n: int) -> bool:
        """Return True if a matrix of m rows and n columns is treated."""
        if self is Side.TALL:
            return m > n
        return m < n if self is Side.WIDE else m != n

    def __repr__(self) -> str:
        return f"Side.{self.name}"


@registered("Identity")
@dataclass(frozen=True, slots=True)
class Identity(Rescaling):
    """The map that changes nothing."""

    def __call__(self, X: Tensor) -> Tensor:
        """Return X itself."""
        return X

    def _on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        """Return X itself."""
        return X

    def degree(self, m: int, n: int) -> float:
        """Return 1: the scale of the input is kept."""
        return 1.0

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return the root mean square entry; see `Slot`."""
        return incoming


@registered("OnSide", may_differ=("otherwise",))
@dataclass(frozen=True, slots=True)
class OnSide(Stage):
    """`then` on the matrices that `side` names, long axis as rows; `otherwise` on the rest.

    Shapes: [..., m, n] -> [..., m, n]. The buffers of `then` are turned with the matrix, so a
    per-row buffer lies along the axis that it describes. With `Side.WIDE` and one slot for both,
    the columns of wide matrices are treated, and the rows of all others, square ones included.
    """

    side: Side
    then: Slot
    otherwise: Slot = Identity()

    def __post_init__(self) -> None:
        check_object("side", self.side)

    def select(self, m: int, n: int) -> Slot:
        """`then` or `otherwise`."""
        return self.then if self.side.touches(m, n) else self.otherwise

    def input_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """Return that of both, if they agree."""
        then, otherwise = (x.input_dtype(dtype, device) for x in (self.then, self.otherwise))
        return then if then == otherwise else dtype

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return those of the slot that does the work."""
        m, n = shape[-2:]
        if not self.side.touches(m, n):
            return self.otherwise.buffer_shapes(shape)
        if m > n:
            return self.then.buffer_shapes(shape)
        turned = self.then.buffer_shapes(_swap(shape))
        return {name: _swap(buffer) for name, buffer in turned.items()}

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """`then` or `otherwise`, by shape."""
        m, n = X.shape[-2:]
        if not self.side.touches(m, n):
            return self.otherwise.apply(X, buffers)
        if m > n:
            return self.then.apply(X, buffers)
        return self.then.apply(X.mT, {name: buffer.mT for name, buffer in buffers.items()}).mT

    def apply_prescaled(self, X: Tensor, buffers: Buffers) -> Tensor:
        """`then` or `otherwise`, by shape, of an X at unit scale that may be overwritten."""
        m, n = X.shape[-2:]
        if not self.side.touches(m, n):
            return self.otherwise.apply_prescaled(X, buffers)
        if m > n:
            return self.then.apply_prescaled(X, buffers)
        turned = {name: buffer.mT for name, buffer in buffers.items()}
        return self.then.apply_prescaled(X.mT, turned).mT

    def _on_rows(self, X: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
        """Return those rows of the image; not where the long axis are columns."""
        m, n = rows.count(X), X.shape[-1]
        if not self.side.touches(m, n):
            return self.otherwise.apply_on_rows(X, rows, buffers)
        if m < n:
            raise NeedsAllRowsError(f"{self.side!r} turns {m} x {n} matrices")
        return self.then.apply_on_rows(X, rows, buffers)

    def apply_on_columns(self, X: Tensor, columns: Rows, buffers: Buffers) -> Tensor:
        """Return those columns of the image; not where the long axis are rows."""
        m, n = X.shape[-2], columns.count(X.mT)
        if not self.side.touches(m, n):
            return self.otherwise.apply_on_columns(X, columns, buffers)
        if m > n:
            raise NeedsAllRowsError(f"{self.side!r} treats rows of {m} x {n} matrices")
        turned = {name: buffer.mT for name, buffer in buffers.items()}
        return self.then.apply_on_rows(X.mT, columns, turned).mT

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return those of the slot that does the work, as the matrix sees them."""
        if not self.side.touches(m, n):
            return self.otherwise.symmetries(m, n)
        if m > n:
            return self.then.symmetries(m, n)
        return mirror_symmetries(self.then.symmetries(n, m))

    def iteration_dtype(
        self, m: int, n: int, dtype: torch.dtype, device: torch.device
    ) -> torch.dtype:
        """Return the dtype of the slot that does the work."""
        return self.select(m, n).iteration_dtype(*self._seen(m, n), dtype, device)

    def repeatable(self, m: int, n: int) -> bool:
        """Return whether the slot that does the work is."""
        return self.select(m, n).repeatable(*self._seen(m, n))

    def rescales_rows(self, m: int, n: int) -> bool:
        """Return whether the slot that does the work rescales the rows of the matrix itself."""
        turned = self.side.touches(m, n) and m < n
        return not turned and self.select(m, n).rescales_rows(m, n)

    def invariants(self, m: int, n: int) -> Invariants:
        """Return those of the slot that does the work, as the matrix sees them."""
        if not self.side.touches(m, n):
            return self.otherwise.invariants(m, n)
        if m > n:
            return self.then.invariants(m, n)
        return mirror_invariants(self.then.invariants(n, m))

    def degree(self, m: int, n: int) -> float:
        """Return that of the slot that does the work."""
        return self.select(m, n).degree(*self._seen(m, n))

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return that of the slot that does the work."""
        return self.select(m, n).output_rms(*self._seen(m, n), incoming)

    def only_rescales(self, m: int, n: int) -> bool:
        """Return whether the slot that does the work only rescales."""
        return self.select(m, n).only_rescales(*self._seen(m, n))

    def moves(self, m: int, n: int) -> bool:
        """Return whether the slot that does the work moves at once."""
        return self.select(m, n).moves(*self._seen(m, n))

    def _seen(self, m: int, n: int) -> tuple[int, int]:
        """Return the shape in which the working slot sees an m x n matrix."""
        return (n, m) if self.side.touches(m, n) and m < n else (m, n)


def _swap(shape: torch.Size) -> torch.Size:
    return torch.Size((*shape[:-2], shape[-1], shape[-2]))
