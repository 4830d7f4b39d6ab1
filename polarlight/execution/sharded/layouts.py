"""Which entries of a tensor lie on which process: pure integers, by DTensor's definitions.

A process holds a product of index sets, one per dimension of the tensor.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

from polarlight.linalg.rest import PER_MATRIX

Coordinate = tuple[int, ...]
Places = tuple[int | None, ...]
"""A coordinate in which None stands for every place."""

Intervals = tuple[tuple[int, int], ...]
"""Global indices [start, stop) along one dimension, in the order in which they lie locally."""


@dataclass(frozen=True, slots=True)
class Split:
    """One dimension of a mesh cuts one dimension of a tensor, as `torch.chunk` cuts.

    Attributes:
        dim: The dimension that is cut, from 0.
        factor: How many equal pieces are cut first, each of which is then spread over the mesh:
            1, or what `_StridedShard` calls its split factor.
    """

    dim: int
    factor: int = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor lies on a mesh.

    Attributes:
        shape: The whole tensor's.
        mesh: Sizes of the mesh's dimensions.
        splits: One per dimension of the mesh; None where every coordinate holds the same.
    """

    shape: tuple[int, ...]
    mesh: tuple[int, ...]
    splits: tuple[Split | None, ...]

    def held(self, coordinate: Coordinate) -> tuple[Intervals, ...]:
        """The indices that lie at a coordinate of the mesh, per dimension of the tensor."""
        places: list[list[int]] = [[] for _ in self.shape]
        for place, split in zip(coordinate, self.splits, strict=True):
            if split is not None:
                places[split.dim].append(place)
        return tuple(
            _cut(size, self._cuts(dim), tuple(places[dim])) for dim, size in enumerate(self.shape)
        )

    @property
    def copies(self) -> int:
        """How often each entry is held."""
        return prod(c for c, split in zip(self.mesh, self.splits, strict=True) if split is None)

    def where(self, ranges: Sequence[tuple[int, int]], *, whole: bool) -> list[Places]:
        """Coordinates that hold all, or some, of what lies between two indices per dimension."""
        found: list[Places] = [(None,) * len(self.mesh)]
        for dim, size in enumerate(self.shape):
            cuts = self._cuts(dim)
            if not cuts:
                continue
            axes = [axis for axis, split in enumerate(self.splits) if split and split.dim == dim]
            places = _holding(size, cuts, *ranges[dim], whole)
            found = [_placed(known, axes, place) for known in found for place in places]
        return found

    def _cuts(self, dim: int) -> tuple[tuple[int, int], ...]:
        """(factor, count) of the mesh's dimensions that cut this one."""
        splits = zip(self.splits, self.mesh, strict=True)
        return tuple((s.factor, count) for s, count in splits if s and s.dim == dim)

    def local_shape(self, coordinate: Coordinate) -> tuple[int, ...]:
        """The shape of what lies there."""
        return tuple(sum(stop - start for start, stop in h) for h in self.held(coordinate))

    def copy(self, coordinate: Coordinate) -> Coordinate:
        """Which of the equal copies a coordinate belongs to; () where there is one."""
        return tuple(c for c, split in zip(coordinate, self.splits, strict=True) if split is None)

    @property
    def cut_by_rows(self) -> tuple[int, ...]:
        """The mesh's dimensions that cut the rows; none unless rows are all that is cut."""
        cuts = {axis: split.dim for axis, split in enumerate(self.splits) if split is not None}
        return tuple(cuts) if set(cuts.values()) == {len(self.shape) - 2} else ()

    def beside(self, shape: Sequence[int]) -> "Layout":
        """The layout of a buffer: cut where the parameter is, as far as its shape allows.

        A dimension that is as long as the parameter's, or divides it evenly (heads), is cut in the
        same place, so that a matrix and its buffers lie together; otherwise the longest one is.
        Two numbers per matrix (`linalg/rest.py`) are copied to all who hold a part of it.
        """
        if tuple(shape[-2:]) == PER_MATRIX and len(shape) == len(self.shape):
            stacks = len(shape) - 2
            kept = (s if s is not None and s.dim < stacks else None for s in self.splits)
            return Layout(tuple(shape), self.mesh, tuple(kept))
        matched = all(split is None or self._matches(split.dim, shape) for split in self.splits)
        longest = max(range(len(shape)), key=lambda dim: shape[dim]) if shape else 0
        splits = (
            split if split is None or matched else self._moved(split, shape, longest)
            for split in self.splits
        )
        return Layout(tuple(shape), self.mesh, tuple(splits))

    def _matches(self, dim: int, shape: Sequence[int]) -> bool:
        if dim >= len(shape) or not shape[dim]:
            return False
        if shape[dim] == self.shape[dim]:
            return True
        cuts = prod(c for c, s in zip(self.mesh, self.splits, strict=True) if s and s.dim == dim)
        return self.shape[dim] % shape[dim] == 0 and shape[dim] % cuts == 0

    def _moved(self, split: Split, shape: Sequence[int], longest: int) -> Split:
        plain = split.factor == 1 and self._matches(split.dim, shape)
        return split if plain else Split(longest)


@lru_cache(maxsize=65536)
def _cut(size: int, cuts: tuple[tuple[int, int], ...], places: Coordinate) -> Intervals:
    """What remains of `size` indices after each (factor, count), taken at its place."""
    held: Intervals = ((0, size),) if size else ()
    for (factor, count), place in zip(cuts, places, strict=True):
        pieces = (_chunk(held, factor, i) for i in range(factor))
        held = tuple(part for piece in pieces for part in _chunk(piece, count, place))
    return _merged(held)


@lru_cache(maxsize=4096)
def _intervals(size: int, cuts: tuple[tuple[int, int], ...]) -> list[tuple[int, int, Coordinate]]:
    """All intervals of all places, in order; together they are the whole dimension."""
    every = product(*(range(count) for _, count in cuts))
    return sorted((*interval, places) for places in every for interval in _cut(size, cuts, places))


@lru_cache(maxsize=65536)
def _holding(
    size: int, cuts: tuple[tuple[int, int], ...], first: int, last: int, whole: bool
) -> list[Coordinate]:
    """Places that hold all indices, or some, between two."""
    intervals = _intervals(size, cuts)
    start = bisect_right(intervals, first, key=lambda interval: interval[0]) - 1
    stop = bisect_right(intervals, last, key=lambda interval: interval[0])
    found = dict.fromkeys(places for _, _, places in intervals[start:stop])
    return [] if whole and len(found) > 1 else list(found)


def _placed(known: Places, axes: Sequence[int], places: Coordinate) -> Places:
    placed = list(known)
    for axis, place in zip(axes, places, strict=True):
        placed[axis] = place
    return tuple(placed)


def _merged(held: Intervals) -> Intervals:
    """Neighbours as one."""
    merged: list[tuple[int, int]] = []
    for start, stop in held:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def _chunk(held: Intervals, count: int, place: int) -> Intervals:
    """The piece that `torch.chunk` would put at a place; empty behind the last one."""
    size = -(-sum(stop - start for start, stop in held) // count)
    first, last, passed, taken = place * size, (place + 1) * size, 0, []
    for start, stop in held:
        low = max(start, start + first - passed)
        high = min(stop, start + last - passed)
        if low < high:
            taken.append((low, high))
        passed += stop - start
    return tuple(taken)
