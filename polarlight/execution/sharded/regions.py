"""Blocks: the entries of one matrix inside a parameter, and their overlap with a shard.

Integers alone. A matrix inside a parameter is a product of arithmetic progressions, whatever the
view. Its overlap with a shard is such a product again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

import torch

from polarlight.execution.sharded.layouts import Intervals
from polarlight.view import MatrixView

Run = tuple[int, int, int]
"""Run of common indices along one dimension: first in the shard, first in the block, length."""


@dataclass(frozen=True, slots=True)
class StridedBlock:
    """Position of one matrix inside a tensor: start, length and step per dimension.

    Attributes:
        starts: First index, per dimension of the tensor.
        steps: Distance of two consecutive indices, per dimension.
        lengths: Number of indices, per dimension.
        size: (m, n) of the matrix.
        strides: Strides of the matrix in a contiguous tensor of shape `lengths`.
    """

    starts: tuple[int, ...]
    steps: tuple[int, ...]
    lengths: tuple[int, ...]
    size: tuple[int, int]
    strides: tuple[int, int]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First and last index of the block, per dimension of the tensor."""
        every = zip(self.starts, self.steps, self.lengths, strict=True)
        return [(start, start + step * (length - 1)) for start, step, length in every]

    @property
    def transposed(self) -> bool:
        """True if a contiguous tensor of shape `lengths` holds the matrix column by column."""
        return min(self.size) > 1 and self.strides[1] != 1

    @property
    def numel(self) -> int:
        """Number of entries of the matrix."""
        return self.size[0] * self.size[1]

    @property
    def is_plain(self) -> bool:
        """True if the tensor's last two dimensions are the matrix's rows and columns, in order."""
        return self.lengths[-2:] == self.size and self.strides == (self.size[1], 1)

    def part(self, dim: int, start: int, length: int) -> "StridedBlock":
        """Return the rows (`dim` -2) or columns (-1) start to start + length of a plain block."""
        starts, lengths, size = list(self.starts), list(self.lengths), list(self.size)
        starts[dim] += start * self.steps[dim]
        lengths[dim] = size[dim] = length
        m, n = size
        return StridedBlock(tuple(starts), self.steps, tuple(lengths), (m, n), (n, 1))

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether the block lies inside this shape and `lengths` multiply to `numel`."""
        every = zip(self.starts, self.steps, self.lengths, shape, strict=True)
        inside = all(start + step * (length - 1) < size for start, step, length, size in every)
        return inside and prod(self.lengths) == self.numel

    def runs(self, held: tuple[Intervals, ...]) -> list[list[Run]]:
        """Return, per dimension, common runs: (first in shard, first in block, count)."""
        return [
            _common_runs(start, step, length, intervals)
            for start, step, length, intervals in zip(
                self.starts, self.steps, self.lengths, held, strict=True
            )
        ]


@lru_cache(maxsize=65536)
def _common_runs(start: int, step: int, length: int, held: Intervals) -> list[Run]:
    """Return runs (index in shard, first k, count) of start + k * step, k < length, in `held`."""
    found, passed = [], 0
    for low, high in held:
        first = max(0, -(-(low - start) // step))
        last = min(length, -(-(high - start) // step))
        if first < last:
            found.append((passed + start + first * step - low, first, last - first))
        passed += high - low
    return found


@dataclass(frozen=True, slots=True)
class Segment:
    """Entries that a block and a shard have in common, as slices of either.

    Attributes:
        of_shard: Slices of the local shard.
        of_block: Slices of a tensor with the block's lengths.
        shape: Shape of both.
        whole: Whether it is all of the shard.
    """

    of_shard: tuple[slice, ...]
    of_block: tuple[slice, ...]
    shape: tuple[int, ...]
    whole: bool

    @property
    def numel(self) -> int:
        """Number of entries."""
        return prod(self.shape)


def segments(block: StridedBlock, held: tuple[Intervals, ...]) -> Iterator[Segment]:
    """Yield what a block and a shard of intervals `held` have in common, as slices of both."""
    held_shape = tuple(sum(high - low for low, high in intervals) for intervals in held)
    for runs in product(*block.runs(held)):
        shape = tuple(count for _, _, count in runs)
        yield Segment(
            tuple(
                slice(place, place + step * (count - 1) + 1, step)
                for (place, _, count), step in zip(runs, block.steps, strict=True)
            ),
            tuple(slice(first, first + count) for _, first, count in runs),
            shape,
            shape == held_shape,
        )


def overlap(block: StridedBlock, held: tuple[Intervals, ...]) -> int:
    """Return the number of a block's entries in a shard that holds the intervals `held`."""
    return prod(sum(count for _, _, count in runs) for runs in block.runs(held))


@dataclass(frozen=True, slots=True)
class MatrixPosition:
    """Position of a matrix in its parameter's view.

    Attributes:
        part: Number of the view's part.
        index: Index of the matrix in the part's leading dimensions.
        flat: The same index as one number.
        block: Entries of the matrix.
    """

    part: int
    index: tuple[int, ...]
    flat: int
    block: StridedBlock


def split_view(view: MatrixView, shape: Sequence[int]) -> list[MatrixPosition]:
    """Return each matrix's position in a tensor, in the view's order; raise if one is no block.

    Raises:
        ValueError: If the entries of a matrix are no product of arithmetic progressions
            (interleaved columns of a kernel).
    """
    positions = []
    for part, matrices in enumerate(view.split(torch.empty(tuple(shape), device="meta"))):
        *batch, m, n = matrices.shape
        *jumps, down, right = matrices.stride()
        for flat, index in enumerate(product(*map(range, batch))):
            offset = int(matrices.storage_offset()) + sum(
                i * j for i, j in zip(index, jumps, strict=True)
            )
            block = _strided_block(offset, (m, n), (down, right), tuple(shape))
            if not block.fits(shape):
                raise ValueError(f"{view} of a parameter of shape {tuple(shape)} cannot be sharded")
            positions.append(MatrixPosition(part, index, flat, block))
    return positions


def _strided_block(
    offset: int, size: tuple[int, int], strides: tuple[int, int], shape: tuple[int, ...]
) -> StridedBlock:
    """Return the block that `as_strided` arguments describe; invalid unless its `fits(shape)`."""
    jumps = [prod(shape[dim + 1 :]) for dim in range(len(shape))]
    starts = tuple(offset // jump % length for jump, length in zip(jumps, shape, strict=True))
    steps, lengths, ends = [1] * len(shape), [1] * len(shape), []
    for count, stride in zip(size, strides, strict=True):
        dim = next(
            (d for d, jump in enumerate(jumps) if shape[d] > 1 and stride % jump == 0),
            len(shape) - 1,
        )
        ends.append(dim)
        steps[dim] = stride // jumps[dim] if count > 1 else 1
        while count > 1:  # a row may run through several dimensions: a kernel's window
            lengths[dim] = min(count, shape[dim]) if steps[dim] == 1 else count
            count //= lengths[dim]
            dim -= 1
    inside = [prod(lengths[dim + 1 :]) for dim in range(len(shape))]
    down, right = (inside[dim] for dim in ends)
    return StridedBlock(starts, tuple(steps), tuple(lengths), size, (down, right))


def vector_block(index: tuple[int, ...], start: int, length: int) -> StridedBlock:
    """Return the 1 x `length` block from entry `start` of vector `index` of [*batch, n]."""
    ones = (1,) * len(index)
    return StridedBlock((*index, start), (*ones, 1), (*ones, length), (1, length), (length, 1))


def batch_block(index: tuple[int, ...], size: tuple[int, int]) -> StridedBlock:
    """Return the block of the matrix at `index` of a batch [*batch, p, q]."""
    ones = (1,) * len(index)
    return StridedBlock((*index, 0, 0), (*ones, 1, 1), (*ones, *size), size, (size[1], 1))
