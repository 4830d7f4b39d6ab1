"""Which entries of a parameter make one matrix, and which of them a shard has: pure integers.

A matrix inside a parameter is a product of arithmetic progressions, whatever the view. Where it
meets a shard is such a product again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

import torch

from polarlight.execution.sharded.layouts import Intervals
from polarlight.view import MatrixView

Meeting = tuple[int, int, int]
"""Where it starts in the shard, where in the block, and how many indices it has."""


@dataclass(frozen=True, slots=True)
class Block:
    """The entries of one matrix inside a tensor.

    Attributes:
        starts: First index per dimension.
        steps: Distance of two neighbours, per dimension.
        lengths: Number of indices, per dimension.
        size: (m, n) of the matrix.
        strides: Of the matrix in a contiguous tensor of shape `lengths`.
    """

    starts: tuple[int, ...]
    steps: tuple[int, ...]
    lengths: tuple[int, ...]
    size: tuple[int, int]
    strides: tuple[int, int]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First and last index, per dimension."""
        every = zip(self.starts, self.steps, self.lengths, strict=True)
        return [(start, start + step * (length - 1)) for start, step, length in every]

    @property
    def turned(self) -> bool:
        """Whether a contiguous tensor of shape `lengths` holds the matrix column by column."""
        return min(self.size) > 1 and self.strides[1] != 1

    @property
    def numel(self) -> int:
        """Number of entries."""
        return self.size[0] * self.size[1]

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether it lies inside a tensor of this shape and has as many entries as its matrix."""
        every = zip(self.starts, self.steps, self.lengths, shape, strict=True)
        inside = all(start + step * (length - 1) < size for start, step, length, size in every)
        return inside and prod(self.lengths) == self.numel

    def meets(self, held: tuple[Intervals, ...]) -> list[list[Meeting]]:
        """Where indices of the block are held, per dimension."""
        return [
            _meet(start, step, length, intervals)
            for start, step, length, intervals in zip(
                self.starts, self.steps, self.lengths, held, strict=True
            )
        ]

    def whole_in(self, held: tuple[Intervals, ...]) -> bool:
        """Whether all of it is held."""
        meetings = zip(self.meets(held), self.lengths, strict=True)
        return all(sum(count for _, _, count in m) == length for m, length in meetings)


@lru_cache(maxsize=65536)
def _meet(start: int, step: int, length: int, intervals: Intervals) -> list[Meeting]:
    found, passed = [], 0
    for low, high in intervals:
        first = max(0, -(-(low - start) // step))
        last = min(length, -(-(high - start) // step))
        if first < last:
            found.append((passed + start + first * step - low, first, last - first))
        passed += high - low
    return found


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece that a block and a shard share: slices of either, and the number of entries."""

    of_shard: tuple[slice, ...]
    of_block: tuple[slice, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of entries."""
        return prod(self.shape)


def segments(block: Block, held: tuple[Intervals, ...]) -> Iterator[Segment]:
    """The pieces of a block that a shard has; none if they do not meet."""
    for meetings in product(*block.meets(held)):
        yield Segment(
            tuple(
                slice(place, place + step * (count - 1) + 1, step)
                for (place, _, count), step in zip(meetings, block.steps, strict=True)
            ),
            tuple(slice(first, first + count) for _, first, count in meetings),
            tuple(count for _, _, count in meetings),
        )


def overlap(block: Block, held: tuple[Intervals, ...]) -> int:
    """How many entries of the block are held."""
    return prod(sum(count for _, _, count in meeting) for meeting in block.meets(held))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a matrix stands in its parameter's view.

    Attributes:
        part: Number of the view's part.
        index: Its index in the part's leading dimensions.
        flat: The same as one number.
        block: Its entries.
    """

    part: int
    index: tuple[int, ...]
    flat: int
    block: Block


def matrices(view: MatrixView, shape: Sequence[int]) -> list[Place]:
    """Every matrix that the view makes of a parameter of this shape, in the view's order.

    Raises:
        ValueError: If the entries of a matrix are no product of progressions (columns of a kernel
            that take turns).
    """
    places = []
    for part, seen in enumerate(view.split(torch.empty(tuple(shape), device="meta"))):
        *batch, m, n = seen.shape
        *jumps, down, right = seen.stride()
        for flat, index in enumerate(product(*map(range, batch))):
            offset = int(seen.storage_offset()) + sum(
                i * j for i, j in zip(index, jumps, strict=True)
            )
            block = _block(offset, (m, n), (down, right), tuple(shape))
            if not block.fits(shape):
                raise ValueError(f"{view} of a parameter of shape {tuple(shape)} cannot be sharded")
            places.append(Place(part, index, flat, block))
    return places


def _block(
    offset: int, size: tuple[int, int], strides: tuple[int, int], shape: tuple[int, ...]
) -> Block:
    """The block of a matrix with these strides in a contiguous tensor of this shape."""
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
    return Block(starts, tuple(steps), tuple(lengths), size, (down, right))


def vector(index: tuple[int, ...], start: int, length: int) -> Block:
    """Consecutive entries of one of the vectors in a tensor [*batch, n]."""
    ones = (1,) * len(index)
    return Block((*index, start), (*ones, 1), (*ones, length), (1, length), (length, 1))


def at(index: tuple[int, ...], size: tuple[int, int]) -> Block:
    """One matrix of a batch [*batch, p, q]."""
    ones = (1,) * len(index)
    return Block((*index, 0, 0), (*ones, 1, 1), (*ones, *size), size, (size[1], 1))
