"""Groups in which processes exchange: with an owner, in one hop or two, and between copies.

Integers alone. A parameter that is replicated along some mesh dimensions is put together within
one copy, its cut group; directions then go from copy to copy. In a large cut group no process talks
to all others. It is divided into groups of equal size, of neighbours by global rank. The first hop
of a gather goes to a place in the sender's group, the second one to the same place in another.
"""

from collections.abc import Sequence
from math import isqrt

from polarlight.execution.sharded.layouts import Coordinate, Layout

MeshAxes = tuple[int, ...]
"""Mesh dimensions."""


def replicated_axes(layout: Layout) -> MeshAxes:
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

    `replicated` is the mesh dimensions along which a tensor is replicated.

    Args:
        coordinates: Mesh coordinate of every process, by rank.
        ranks: Global ranks; neighbours share a first-hop group.
        peers: Most processes that one process should exchange messages with.
    """

    def __init__(self, coordinates: Sequence[Coordinate], ranks: Sequence[int], peers: int) -> None:
        """Sort the processes by global rank; groups are made when first asked for."""
        self.coordinates, self.peers = coordinates, peers
        self._order = sorted(range(len(coordinates)), key=ranks.__getitem__)
        self._groups: dict[tuple[MeshAxes, bool], list[tuple[int, ...]]] = {}
        self._known_places: dict[MeshAxes, list[tuple[int, int]]] = {}
        self._grids: dict[MeshAxes, tuple[int, int] | None] = {}

    def cut_group(self, replicated: MeshAxes, rank: int) -> tuple[int, ...]:
        """Return the ranks whose shards make up `rank`'s copy of a tensor, by global rank."""
        return self._groups_of(replicated, across=False)[rank]

    def copies(self, replicated: MeshAxes, rank: int) -> tuple[int, ...]:
        """Return the ranks with the same shard as `rank`, itself included: one in each copy."""
        return self._groups_of(replicated, across=True)[rank]

    def grid_of(self, replicated: MeshAxes) -> tuple[int, int] | None:
        """Return (group size, groups) of a two-hop exchange within a copy; None for one hop.

        The copies are those of a tensor that is replicated along these mesh dimensions; see `grid`.
        """
        if replicated not in self._grids:
            self._grids[replicated] = grid(len(self.cut_group(replicated, 0)), self.peers)
        return self._grids[replicated]

    def first_hop_group(self, replicated: MeshAxes, rank: int) -> tuple[int, ...]:
        """Return `rank`'s first-hop group: neighbours in its cut group; all of it for one hop."""
        group, shape = self.cut_group(replicated, rank), self.grid_of(replicated)
        if shape is None:
            return group
        first, _ = self.places(replicated)[rank]
        return group[first : first + shape[0]]

    def second_hop_group(self, replicated: MeshAxes, rank: int) -> tuple[int, ...]:
        """Return the ranks at `rank`'s place in each first-hop group; (rank,) for one hop."""
        group, shape = self.cut_group(replicated, rank), self.grid_of(replicated)
        return (rank,) if shape is None else group[self.places(replicated)[rank][1] :: shape[0]]

    def via(self, replicated: MeshAxes, peer: int, owner: int) -> int:
        """Return the rank in the peer's first-hop group at the owner's place, which relays."""
        places = self.places(replicated)
        return self.cut_group(replicated, peer)[places[peer][0] + places[owner][1]]

    def places(self, replicated: MeshAxes) -> list[tuple[int, int]]:
        """Return, per rank, (index of its first-hop group's start in its cut group, place in it).

        For one hop every process is a group of its own.
        """
        if replicated not in self._known_places:
            local, _ = self.grid_of(replicated) or (1, 1)
            found = [(0, 0)] * len(self.coordinates)
            groups = {id(group): group for group in self._groups_of(replicated, across=False)}
            for group in groups.values():
                for k, rank in enumerate(group):
                    found[rank] = k // local * local, k % local
            self._known_places[replicated] = found
        return self._known_places[replicated]

    def _groups_of(self, replicated: MeshAxes, *, across: bool) -> list[tuple[int, ...]]:
        """Return, per rank, the ranks of its copy, or those with its shard if `across`; cached."""
        if (replicated, across) not in self._groups:
            places = [
                tuple(c for axis, c in enumerate(where) if (axis in replicated) != across)
                for where in self.coordinates
            ]
            found: dict[Coordinate, list[int]] = {}
            for rank in self._order:
                found.setdefault(places[rank], []).append(rank)
            groups = {place: tuple(group) for place, group in found.items()}
            self._groups[replicated, across] = [groups[place] for place in places]
        return self._groups[replicated, across]
