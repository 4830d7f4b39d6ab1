"""Which shapes a row method is for, and how wide matrices are turned to meet it."""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from polarlight.linalg.row_sums import NeedsAllRowsError, Rows, on_rows
from polarlight.lookup import check_object
from polarlight.registry import registered
from polarlight.rule import Buffers, MatrixMap, Slot, apply, apply_on_rows, buffer_shapes, reads


class Side(Enum):
    """Which matrices a row method touches; the others keep the plain map.

    TALL:      rows of tall matrices (gate and up projections): the paper and its author.
    WIDE:      columns of wide matrices (down projections): track 3's records.
    LONG_AXIS: both, whichever axis is longer: what the Aurora release's code does.
    """

    TALL = "tall"
    WIDE = "wide"
    LONG_AXIS = "long_axis"

    def touches(self, m: int, n: int) -> bool:
        """Whether a matrix of m rows and n columns is treated."""
        if self is Side.TALL:
            return m > n
        return m < n if self is Side.WIDE else m != n

    def __repr__(self) -> str:
        return f"Side.{self.name}"


@registered("Identity")
@dataclass(frozen=True, slots=True)
class Identity:
    """The map that changes nothing."""

    def __call__(self, X: Tensor) -> Tensor:
        """X itself."""
        return X

    def on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        """X itself."""
        return X


@registered("OnSide", may_differ=("otherwise",))
@dataclass(frozen=True, slots=True)
class OnSide:
    """`then` on the matrices that `side` names, long axis as rows; `otherwise` on the rest.

    Shapes: [..., m, n] -> [..., m, n]. The buffers of `then` are turned with the matrix, so a
    per-row buffer lies along the axis that it describes.
    """

    side: Side
    then: Slot
    otherwise: MatrixMap = Identity()

    def __post_init__(self) -> None:
        check_object("side", self.side)

    def chosen(self, m: int, n: int) -> Slot:
        """`then` or `otherwise`."""
        return self.then if self.side.touches(m, n) else self.otherwise

    def reads(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """As both, if they agree."""
        then, otherwise = (reads(x, dtype, device) for x in (self.then, self.otherwise))
        return then if then == otherwise else dtype

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Those of `then`, where it is used."""
        m, n = shape[-2:]
        if not self.side.touches(m, n):
            return {}
        if m > n:
            return buffer_shapes(self.then, shape)
        turned = buffer_shapes(self.then, _swap(shape))
        return {name: _swap(buffer) for name, buffer in turned.items()}

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """`then` or `otherwise`, by shape."""
        m, n = X.shape[-2:]
        if not self.side.touches(m, n):
            return self.otherwise(X)
        if m > n:
            return apply(self.then, X, buffers)
        return apply(self.then, X.mT, {name: buffer.mT for name, buffer in buffers.items()}).mT

    def on_rows(self, X: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
        """The same on a part of the rows; not where the long axis are columns."""
        m, n = rows.count(X), X.shape[-1]
        if not self.side.touches(m, n):
            return on_rows(self.otherwise, X, rows)
        if m < n:
            raise NeedsAllRowsError(f"{self.side!r} turns {m} x {n} matrices")
        return apply_on_rows(self.then, X, rows, buffers)


def _swap(shape: torch.Size) -> torch.Size:
    return torch.Size((*shape[:-2], shape[-1], shape[-2]))
