"""Which part of a parameter is a matrix.

A view splits a parameter into matrices [..., m, n] (fan_out, fan_in), all of them views of its
storage, and joins the results again. It is a value: it prints, compares, pickles, and goes into the
param group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class MatrixView(Protocol):
    """The matrices inside a parameter."""

    def shapes(self, shape: torch.Size) -> list[torch.Size]:
        """The shapes of the parts of a parameter of this shape.

        Raises:
            ValueError: If the parameter has no such parts.
        """

    def split(self, x: Tensor) -> list[Tensor]:
        """The parts, each [..., m, n], as views of x."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`: a tensor of the parameter's shape."""


@dataclass(frozen=True, slots=True)
class Whole:
    """The last two dimensions are one matrix; leading ones are a batch of independent matrices."""

    def shapes(self, shape: torch.Size) -> list[torch.Size]:
        """The shape itself."""
        return [_matrix(shape, self)]

    def split(self, x: Tensor) -> list[Tensor]:
        """The parameter itself."""
        return [x]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The only part."""
        return parts[0]


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """Blocks of consecutive rows, each a matrix of its own: fused QKV, fused gate and up.

    Attributes:
        sizes: Rows of each block; they add up to the rows of the parameter.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes must be one or more positive row counts, got {self.sizes}")

    def shapes(self, shape: torch.Size) -> list[torch.Size]:
        """One shape per block."""
        *batch, m, n = _matrix(shape, self)
        if sum(self.sizes) != m:
            raise ValueError(f"{self} covers {sum(self.sizes)} rows, the parameter has {m}")
        return [torch.Size((*batch, rows, n)) for rows in self.sizes]

    def split(self, x: Tensor) -> list[Tensor]:
        """The blocks."""
        return list(x.split(self.sizes, dim=-2))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The blocks, stacked."""
        return torch.cat(tuple(parts), dim=-2)


@dataclass(frozen=True, slots=True)
class Heads:
    """Equal heads along one dimension, each a matrix of its own; together one batch.

    Attributes:
        count: Number of heads.
        dim: -2 for projections whose rows are heads (q, k, v), -1 for those whose columns are (o).
    """

    count: int
    dim: int = -2

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be >= 1, got {self.count}")
        if self.dim not in (-2, -1):
            raise ValueError(f"dim must be -2 (rows) or -1 (columns), got {self.dim}")

    def shapes(self, shape: torch.Size) -> list[torch.Size]:
        """One batched shape [..., heads, m, n]."""
        *batch, m, n = _matrix(shape, self)
        if shape[self.dim] % self.count:
            raise ValueError(
                f"{self} cannot split {shape[self.dim]} of shape {tuple(shape)} evenly"
            )
        m, n = (m // self.count, n) if self.dim == -2 else (m, n // self.count)
        return [torch.Size((*batch, self.count, m, n))]

    def split(self, x: Tensor) -> list[Tensor]:
        """All heads as one batch."""
        if self.dim == -2:
            return [x.unflatten(-2, (self.count, -1))]
        return [x.unflatten(-1, (self.count, -1)).movedim(-2, -3)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The heads, side by side."""
        if self.dim == -2:
            return parts[0].flatten(-3, -2)
        return parts[0].movedim(-3, -2).flatten(-2, -1)


@dataclass(frozen=True, slots=True)
class Transposed:
    """Parameters stored (fan_in, fan_out), such as GPT-2's Conv1D, seen as (fan_out, fan_in).

    Attributes:
        inner: The view of the transposed parameter.
    """

    inner: MatrixView = Whole()

    def shapes(self, shape: torch.Size) -> list[torch.Size]:
        """Those of the inner view on the transposed shape."""
        *batch, m, n = _matrix(shape, self)
        return self.inner.shapes(torch.Size((*batch, n, m)))

    def split(self, x: Tensor) -> list[Tensor]:
        """The inner view's parts of the transposed parameter."""
        return self.inner.split(x.mT)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inner view's result, turned back."""
        return self.inner.join(parts).mT


def _matrix(shape: torch.Size, view: MatrixView) -> torch.Size:
    if len(shape) < 2:
        raise ValueError(f"{view} needs at least 2 dimensions, got shape {tuple(shape)}")
    return shape
