"""Groups in which processes exchange: around one owner, within and across nodes, between copies.

Integers alone. A parameter that is replicated along some mesh dimensions is put together within
one copy, its cut group; directions then go from copy to copy. In a large cut group no process talks
to all others: messages go to the right place within a node first, and across nodes from there.
"""

from collections.abc import Sequence
from math import isqrt

from polarlight.execution.sharded.layouts import Coordinate, Layout

Axes = tuple[int, ...]
"""Mesh dimensions."""


def replicated_axes(layout: Layout) -> Axes:
    """Return the mesh dimensions, longer than 1, along which a tensor is replicated."""
    every = enumerate(zip(layout.splits, layout.mesh, strict=True))
    return tuple(axis for axis, (split, size) in every if split is None and size > 1)


def grid(size: int, peers: int) -> tuple[int, int] | None:
    """Return (group size, groups) for a two-hop exchange of `size` processes; None for one hop.

    None where each process may talk to all others, or the size has no divisors. The product is
    `size`, and a process talks to the least possible number of others.
    """
    if size - 1 <= peers:
        return None
    local = max(d for d in range(1, isqrt(size) + 1) if size % d == 0)
    return (local, size // local) if local > 1 else None


class Topology:
    """Groups of a mesh's processes, by their ranks in the mesh.

    Args:
        coordinates: Mesh coordinate of every process, by rank.
        ranks: Global ranks, neighbours of which are taken for a node.
        peers: Most processes that one process should exchange messages with.
    """

    def __init__(self, coordinates: Sequence[Coordinate], ranks: Sequence[int], peers: int) -> None:
        """Sort the processes by global rank; groups are made when first asked for."""
        self.coordinates, self.peers = coordinates, peers
        self._order = sorted(range(len(coordinates)), key=ranks.__getitem__)
        self._groups: dict[tuple[Axes, bool], list[tuple[int, ...]]] = {}
        self._known_places: dict[Axes, list[tuple[int, int]]] = {}
        self._grids: dict[Axes, tuple[int, int] | None] = {}

    def cut_group(self, axes: Axes, rank: int) -> tuple[int, ...]:
        """Return the ranks that hold `rank`'s copy of a tensor replicated along `axes`."""
        return self._groups_of(axes, across=False)[rank]

    def copies(self, axes: Axes, rank: int) -> tuple[int, ...]:
        """Return the ranks with the same shard as `rank`, one per copy along `axes`."""
        return self._groups_of(axes, across=True)[rank]

    def grid_of(self, axes: Axes) -> tuple[int, int] | None:
        """Return (group size, groups) of a two-hop exchange; None for one hop or a prime size.

        The copies are those of a tensor that is replicated along `axes`; see `grid`.
        """
        if axes not in self._grids:
            self._grids[axes] = grid(len(self.cut_group(axes, 0)), self.peers)
        return self._grids[axes]

    def node(self, axes: Axes, rank: int) -> tuple[int, ...]:
        """Return the ranks of `rank`'s first-hop group in its copy; all of the copy for one hop."""
        group, shape = self.cut_group(axes, rank), self.grid_of(axes)
        if shape is None:
            return group
        first, _ = self.places(axes)[rank]
        return group[first : first + shape[0]]

    def column(self, axes: Axes, rank: int) -> tuple[int, ...]:
        """Return the ranks of `rank`'s second-hop group in its copy; (rank,) for one hop."""
        group, shape = self.cut_group(axes, rank), self.grid_of(axes)
        return (rank,) if shape is None else group[self.places(axes)[rank][1] :: shape[0]]

    def via(self, axes: Axes, peer: int, owner: int) -> int:
        """Return the rank at the owner's place in a peer's node, which relays between the two."""
        places = self.places(axes)
        return self.cut_group(axes, peer)[places[peer][0] + places[owner][1]]

    def places(self, axes: Axes) -> list[tuple[int, int]]:
        """Return, per rank, (index in its copy where its hop group starts, place in that group)."""
        if axes not in self._known_places:
            local, _ = self.grid_of(axes) or (1, 1)
            found = [(0, 0)] * len(self.coordinates)
            groups = {id(group): group for group in self._groups_of(axes, across=False)}
            for group in groups.values():
                for k, rank in enumerate(group):
                    found[rank] = k // local * local, k % local
            self._known_places[axes] = found
        return self._known_places[axes]

    def _groups_of(self, axes: Axes, *, across: bool) -> list[tuple[int, ...]]:
        """Return each rank's group: equal coordinates along `axes` (`across`: all other axes)."""
        if (axes, across) not in self._groups:
            places = [
                tuple(c for axis, c in enumerate(where) if (axis in axes) != across)
                for where in self.coordinates
            ]
            found: dict[Coordinate, list[int]] = {}
            for rank in self._order:
                found.setdefault(places[rank], []).append(rank)
            groups = {place: tuple(group) for place, group in found.items()}
            self._groups[axes, across] = [groups[place] for place in places]
        return self._groups[axes, across]
