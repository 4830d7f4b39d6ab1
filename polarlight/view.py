"""Matrix views: which part of a parameter is a matrix, stated as a split and its inverse.

A view splits a parameter into matrices [..., m, n] (fan_out, fan_in), all of them views of its
storage, and joins the results again. It is a value: it prints, compares, pickles, and goes into the
param group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from polarlight.registry import registered

__all__ = [
    "Flattened",
    "Heads",
    "Interleaved",
    "MatrixView",
    "RowBlocks",
    "Slices",
    "Taps",
    "Transposed",
    "Whole",
]

T = TypeVar("T")


@runtime_checkable
class MatrixView(Protocol):
    """The matrices inside a parameter; the length is the number of parts."""

    def __len__(self) -> int: ...

    def shapes(self, shape: torch.Size) -> list[torch.Size]:
        """The shapes of the parts of a parameter of this shape.

        Raises:
            ValueError: If the parameter has no such parts.
        """

    def split(self, x: Tensor) -> list[Tensor]:
        """The parts, each [..., m, n], as views of x."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`: a tensor of the parameter's shape."""


@registered("Whole")
@dataclass(frozen=True, slots=True)
class Whole:
    """The last two dimensions are one matrix; leading ones are a batch of independent matrices."""

    def __len__(self) -> int:
        return 1

    def shapes(self, shape: torch.Size) -> list[torch.Size]:
        """The shape itself."""
        return [_matrix(shape, self)]

    def split(self, x: Tensor) -> list[Tensor]:
        """The parameter itself."""
        return [x]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The only part."""
        return parts[0]


@registered("RowBlocks")
@dataclass(frozen=True, slots=True)
class RowBlocks:
    """Blocks of consecutive rows, each a matrix of its own: fused QKV, fused gate and up.

    Column blocks are `Transposed(RowBlocks(sizes, (Transposed(), ...)))`.

    Attributes:
        sizes: Rows of each block; they add up to the rows of the parameter.
        inner: One view per block; empty where each block is one matrix.
    """

    sizes: tuple[int, ...]
    inner: tuple[MatrixView, ...] = ()

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes must be one or more positive row counts, got {self.sizes}")
        if self.inner and len(self.inner) != len(self.sizes):
            raise ValueError(f"{len(self.sizes)} blocks need as many views, got {self.inner}")

    def __len__(self) -> int:
        return sum(map(len, self.inner)) or len(self.sizes)

    def shapes(self, shape: torch.Size) -> list[torch.Size]:
        """Return the shapes of each block's view, block after block."""
        *batch, m, n = _matrix(shape, self)
        if sum(self.sizes) != m:
            raise ValueError(f"{self} covers {sum(self.sizes)} rows, the parameter has {m}")
        blocks = [torch.Size((*batch, rows, n)) for rows in self.sizes]
        return [part for view, block in self._pairs(blocks) for part in view.shapes(block)]

    def split(self, x: Tensor) -> list[Tensor]:
        """The parts of each block, block after block."""
        blocks = x.split(self.sizes, dim=-2)
        return [part for view, block in self._pairs(blocks) for part in view.split(block)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The blocks, stacked."""
        remaining = iter(parts)
        blocks = [
            view.join(list(islice(remaining, len(view)))) for view, _ in self._pairs(self.sizes)
        ]
        return torch.cat(blocks, dim=-2)

    def _pairs(self, blocks: Sequence[T]) -> Iterator[tuple[MatrixView, T]]:
        return zip(self.inner or [Whole()] * len(self.sizes), blocks, strict=True)


@registered("Heads")
@dataclass(frozen=True, slots=True)
class Heads:
    """Equal heads along one dimension, each a matrix of its own; together one batch.

    Attributes:
        count: Number of heads.
        dim: -2 for projections whose rows are heads (q, k, v), -1 for those whose columns are (o).
        inner: The view of each head.
    """

    count: int
    dim: int = -2
    inner: MatrixView = Whole()

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be >= 1, got {self.count}")
        if self.dim not in (-2, -1):
            raise ValueError(f"dim must be -2 (rows) or -1 (columns), got {self.dim}")

    def __len__(self) -> int:
        return len(self.inner)

    def shapes(self, shape: torch.Size) -> list[torch.Size]:
        """Return the shapes of the inner view on a batch [..., heads, m, n]."""
        *batch, m, n = _matrix(shape, self)
        if shape[self.dim] % self.count:
            raise ValueError(
                f"{self} cannot split {shape[self.dim]} of shape {tuple(shape)} evenly"
            )
        m, n = (m // self.count, n) if self.dim == -2 else (m, n // self.count)
        return self.inner.shapes(torch.Size((*batch, self.count, m, n)))

    def split(self, x: Tensor) -> list[Tensor]:
        """All heads as one batch, seen by the inner view."""
        heads = x.unflatten(self.dim, (self.count, x.shape[self.dim] // self.count))
        return self.inner.split(heads if self.dim == -2 else heads.movedim(-2, -3))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The heads, side by side."""
        heads = self.inner.join(parts)
        if self.dim == -2:
            return heads.flatten(-3, -2)
        return heads.movedim(-3, -2).flatten(-2, -1)


@registered("Interleaved")
@dataclass(frozen=True, slots=True)
class Interleaved:
    """Matrices whose rows take turns: gate and up stored as g0, u0, g1, u1, ...

    Attributes:
        count: Number of matrices; the parts are rows 0, count, 2 count, ..., then 1, count + 1, ...
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be >= 1, got {self.count}")

    def __len__(self) -> int:
        return self.count

    def shapes(self, shape: torch.Size) -> list[torch.Size]:
        """`count` equal shapes."""
        *batch, m, n = _matrix(shape, self)
        if m % self.count:
            raise ValueError(f"{self} cannot split {m} rows of shape {tuple(shape)} evenly")
        return [torch.Size((*batch, m // self.count, n))] * self.count

    def split(self, x: Tensor) -> list[Tensor]:
        """Every count-th row, from the first, the second, ..."""
        return list(x.unflatten(-2, (x.shape[-2] // self.count, self.count)).unbind(-2))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows, taking turns again."""
        return torch.stack(tuple(parts), dim=-2).flatten(-3, -2)


@registered("Slices")
@dataclass(frozen=True, slots=True)
class Slices:
    """Matrices along a dimension of their own: gate and up stored [..., m, count, n].

    Attributes:
        count: Size of that dimension, the last but one; the parts are x[..., i, :].
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be >= 1, got {self.count}")

    def __len__(self) -> int:
        return self.count

    def shapes(self, shape: torch.Size) -> list[torch.Size]:
        """`count` equal shapes."""
        if len(shape) < 3 or shape[-2] != self.count:
            raise ValueError(
                f"{self} needs a parameter [..., m, {self.count}, n], got shape {tuple(shape)}"
            )
        return [torch.Size((*shape[:-2], shape[-1]))] * self.count

    def split(self, x: Tensor) -> list[Tensor]:
        """The slices, as views."""
        return list(x.unbind(-2))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The slices, stacked along their dimension again."""
        return torch.stack(tuple(parts), dim=-2)


@registered("Transposed")
@dataclass(frozen=True, slots=True)
class Transposed:
    """Parameters stored (fan_in, fan_out), such as GPT-2's Conv1D, seen as (fan_out, fan_in).

    Attributes:
        inner: The view of the transposed parameter.
    """

    inner: MatrixView = Whole()

    def __len__(self) -> int:
        return len(self.inner)

    def shapes(self, shape: torch.Size) -> list[torch.Size]:
        """Return the shapes of the inner view on the transposed shape."""
        *batch, m, n = _matrix(shape, self)
        return self.inner.shapes(torch.Size((*batch, n, m)))

    def split(self, x: Tensor) -> list[Tensor]:
        """The inner view's parts of the transposed parameter."""
        return self.inner.split(x.mT)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inner view's result, turned back."""
        return self.inner.join(parts).mT


@registered("Flattened")
@dataclass(frozen=True, slots=True)
class Flattened:
    """Convolution kernels [out, in, *window], each a single matrix [out, in * window].

    Those of transposed convolutions are stored [in, out, ...]: `Flattened(window, Transposed())`.
    A kernel in channels-last memory is copied, since no stride runs through its columns.

    Attributes:
        window: Size of the window, `(3, 3)` for a 3 x 3 convolution.
        inner: The view of that matrix.
    """

    window: tuple[int, ...]
    inner: MatrixView = Whole()

    def __post_init__(self) -> None:
        if not self.window or min(self.window) < 1:
            raise ValueError(f"window must be one or more positive sizes, got {self.window}")

    def __len__(self) -> int:
        return len(self.inner)

    def shapes(self, shape: torch.Size) -> list[torch.Size]:
        """Return the shapes of the inner view on [out, in * window]."""
        if tuple(_kernel(shape, self)[2:]) != self.window:
            raise ValueError(f"{self} does not fit a kernel of shape {tuple(shape)}")
        return self.inner.shapes(torch.Size((shape[0], shape[1:].numel())))

    def split(self, x: Tensor) -> list[Tensor]:
        """The kernel with its input channels and window in one row, seen by the inner view."""
        return self.inner.split(x.flatten(1))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows, cut into input channels and window again."""
        kernel: Tensor = self.inner.join(parts).unflatten(1, (-1, *self.window))
        return kernel


@registered("Taps")
@dataclass(frozen=True, slots=True)
class Taps:
    """Convolution kernels [out, in, *window], a matrix [out, in] per place in the window.

    Together they are one batch [*window, out, in].

    Attributes:
        inner: The view of each of them.
    """

    inner: MatrixView = Whole()

    def __len__(self) -> int:
        return len(self.inner)

    def shapes(self, shape: torch.Size) -> list[torch.Size]:
        """Return the shapes of the inner view on a batch [*window, out, in]."""
        fan_out, fan_in, *window = _kernel(shape, self)
        return self.inner.shapes(torch.Size((*window, fan_out, fan_in)))

    def split(self, x: Tensor) -> list[Tensor]:
        """All taps as one batch, seen by the inner view."""
        return self.inner.split(x.movedim((0, 1), (-2, -1)))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The taps, back in their window."""
        return self.inner.join(parts).movedim((-2, -1), (0, 1))


def _matrix(shape: torch.Size, view: MatrixView) -> torch.Size:
    if len(shape) < 2:
        raise ValueError(f"{view} needs at least 2 dimensions, got shape {tuple(shape)}")
    return shape


def _kernel(shape: torch.Size, view: MatrixView) -> torch.Size:
    if len(shape) < 3:
        raise ValueError(f"{view} needs a kernel [out, in, ...], got shape {tuple(shape)}")
    return shape
