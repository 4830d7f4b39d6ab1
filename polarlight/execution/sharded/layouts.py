"""Layouts: the entries of a tensor on each process, as integers, by DTensor's definitions.

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
CoordinatePattern = tuple[int | None, ...]
"""Coordinate in which None stands for every index of a mesh dimension."""

Intervals = tuple[tuple[int, int], ...]
"""Global indices [start, stop) along one dimension, in local order."""


@dataclass(frozen=True, slots=True)
class Split:
    """Cut of a tensor dimension over a mesh dimension, as by `torch.chunk`.

    Attributes:
        dim: The dimension that is cut, from 0.
        factor: Number of equal pieces that are cut first; each is then cut over the mesh. 1 for
            `Shard`, the split factor of `_StridedShard`.
    """

    dim: int
    factor: int = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Layout of a tensor on a mesh.

    Attributes:
        shape: Shape of the whole tensor.
        mesh: Size of each mesh dimension.
        splits: One per mesh dimension; None where the tensor is replicated along it.
    """

    shape: tuple[int, ...]
    mesh: tuple[int, ...]
    splits: tuple[Split | None, ...]

    def held(self, coordinate: Coordinate) -> tuple[Intervals, ...]:
        """Return, per tensor dimension, the global intervals [start, stop) held at a coordinate."""
        places: list[list[int]] = [[] for _ in self.shape]
        for place, split in zip(coordinate, self.splits, strict=True):
            if split is not None:
                places[split.dim].append(place)
        return tuple(
            _held_after(size, self._cuts(dim), tuple(places[dim]))
            for dim, size in enumerate(self.shape)
        )

    @property
    def copies(self) -> int:
        """Number of processes that hold each entry of the tensor."""
        return prod(c for c, split in zip(self.mesh, self.splits, strict=True) if split is None)

    def coordinates_of(
        self, first_and_last: Sequence[tuple[int, int]], *, whole: bool
    ) -> list[CoordinatePattern]:
        """Return patterns of coordinates that hold all (`whole`) or any indices of a box.

        Args:
            first_and_last: First and last index of the box, per dimension of the tensor.
            whole: Whether a coordinate must hold all of them.
        """
        found: list[CoordinatePattern] = [(None,) * len(self.mesh)]
        for dim, size in enumerate(self.shape):
            cuts = self._cuts(dim)
            if not cuts:
                continue
            axes = [axis for axis, split in enumerate(self.splits) if split and split.dim == dim]
            places = _chunks_holding(size, cuts, *first_and_last[dim], whole)
            index_of = [dict(zip(axes, place, strict=True)) for place in places]  # by mesh axis
            found = [
                tuple(known.get(axis, index) for axis, index in enumerate(pattern))
                for pattern in found
                for known in index_of
            ]
        return found

    def _cuts(self, dim: int) -> tuple[tuple[int, int], ...]:
        """Return (split factor, mesh size) of each mesh dimension that cuts tensor dim `dim`."""
        splits = zip(self.splits, self.mesh, strict=True)
        return tuple((s.factor, count) for s, count in splits if s and s.dim == dim)

    def local_shape(self, coordinate: Coordinate) -> tuple[int, ...]:
        """Return the shape of the shard at a coordinate."""
        return tuple(sum(stop - start for start, stop in h) for h in self.held(coordinate))

    def copy_index(self, coordinate: Coordinate) -> Coordinate:
        """Return a coordinate's entries along replicated mesh dimensions; () if there are none."""
        return tuple(c for c, split in zip(coordinate, self.splits, strict=True) if split is None)

    @property
    def cuts_matrices(self) -> bool:
        """True if one of the last two tensor dimensions is cut."""
        return any(split is not None and split.dim >= len(self.shape) - 2 for split in self.splits)

    def for_buffer(self, shape: Sequence[int]) -> "Layout":
        """Return a buffer's layout: cut as the parameter or on its longest dim; [1, 2] replicated.

        A dimension of equal length, or that divides the parameter's evenly (heads), is cut over the
        same mesh dimension: a matrix and its buffers are then on the same process. The two numbers
        per matrix of `linalg/rest.py` are replicated on all processes that hold a part of it.
        """
        if tuple(shape[-2:]) == PER_MATRIX and len(shape) == len(self.shape):
            stacks = len(shape) - 2
            kept = (s if s is not None and s.dim < stacks else None for s in self.splits)
            return Layout(tuple(shape), self.mesh, tuple(kept))
        fits = [split is None or self._is_cut_alike(split.dim, shape) for split in self.splits]
        longest = max(range(len(shape)), key=lambda dim: shape[dim]) if shape else 0
        splits = [
            split if split is None or all(fits) or (fit and split.factor == 1) else Split(longest)
            for split, fit in zip(self.splits, fits, strict=True)
        ]
        return Layout(tuple(shape), self.mesh, tuple(splits))

    def _is_cut_alike(self, dim: int, shape: Sequence[int]) -> bool:
        """Return whether a buffer of `shape` can be cut along `dim` just as the parameter is.

        A smaller length (heads) has to be a multiple of the number of shards along `dim`.
        """
        if dim >= len(shape) or not shape[dim]:
            return False
        if shape[dim] == self.shape[dim]:
            return True
        cuts = prod(c for c, s in zip(self.mesh, self.splits, strict=True) if s and s.dim == dim)
        return self.shape[dim] % shape[dim] == 0 and shape[dim] % cuts == 0


@lru_cache(maxsize=65536)
def _held_after(size: int, cuts: tuple[tuple[int, int], ...], places: Coordinate) -> Intervals:
    """Return the intervals of range(size) in chunks `places` of nested cuts, one per cut; cached.

    Args:
        size: Length of the dimension.
        cuts: (split factor, chunks) per cut: each piece of a strided split is cut into chunks.
        places: Number of the chunk that is held, per cut.
    """
    held: Intervals = ((0, size),) if size else ()
    for (factor, count), place in zip(cuts, places, strict=True):
        pieces = (_chunk(held, factor, i) for i in range(factor))
        held = tuple(part for piece in pieces for part in _chunk(piece, count, place))
    merged: list[tuple[int, int]] = []  # adjacent intervals as one
    for start, stop in held:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


@lru_cache(maxsize=4096)
def _sorted_intervals(
    size: int, cuts: tuple[tuple[int, int], ...]
) -> list[tuple[int, int, Coordinate]]:
    """Return sorted (start, stop, chunk per cut) after cuts (split factor, chunks); cached."""
    every = product(*(range(count) for _, count in cuts))
    return sorted(
        (*interval, places) for places in every for interval in _held_after(size, cuts, places)
    )


@lru_cache(maxsize=65536)
def _chunks_holding(
    size: int, cuts: tuple[tuple[int, int], ...], first: int, last: int, whole: bool
) -> list[Coordinate]:
    """Return (chunk per cut) of each process with all (`whole`) or any of indices first..last."""
    intervals = _sorted_intervals(size, cuts)
    start = bisect_right(intervals, first, key=lambda interval: interval[0]) - 1
    stop = bisect_right(intervals, last, key=lambda interval: interval[0])
    found = dict.fromkeys(places for _, _, places in intervals[start:stop])
    return [] if whole and len(found) > 1 else list(found)


def _chunk(held: Intervals, count: int, place: int) -> Intervals:
    """Return chunk number `place` of `count` of the held indices, as torch.chunk; may be empty."""
    size = -(-sum(stop - start for start, stop in held) // count)
    first, last, passed, taken = place * size, (place + 1) * size, 0, []
    for start, stop in held:
        low = max(start, start + first - passed)
        high = min(stop, start + last - passed)
        if low < high:
            taken.append((low, high))
        passed += stop - start
    return tuple(taken)
