"""Buckets of matrices that are exchanged at the same time, bounded for every process.

A matrix takes room of its owner, which gathers it, of the processes that hold a part of it, and of
those that pass it on in two hops. Where many processes hold parts of a matrix, room is counted for
all of them together by the largest part, apart from the room of single processes: no process sends,
receives or passes on more than twice the limit in one bucket.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from polarlight.execution.sharded.kinds import MatrixKind
from polarlight.execution.sharded.topology import Topology

FEW = 64
"""Holders of a matrix up to which the bytes of each one are counted apart."""

Room = tuple[Hashable, int]
"""Bytes that a matrix takes of a process, or of all processes of a group."""


@dataclass(slots=True)
class Buckets:
    """Matrices by bucket, filled one owner after the other.

    Attributes:
        limit: Most bytes of a process, or of a group of them, per bucket; more for one matrix.
        numbers: Matrices of each bucket.
    """

    limit: int
    numbers: list[list[int]] = field(default_factory=list)
    _taken: list[dict[Hashable, int]] = field(default_factory=list)

    def add(self, number: int, rooms: Sequence[Room], start: int) -> int:
        """Add a matrix to the first bucket that has room for it; return which one.

        Args:
            number: Number of the matrix.
            rooms: The room that it takes.
            start: First bucket to try: that of the owner's last matrix.
        """
        bucket = start
        while not self._has(bucket, rooms):
            bucket += 1
        while len(self.numbers) <= bucket:
            self.numbers.append([])
            self._taken.append(defaultdict(int))
        self.numbers[bucket].append(number)
        taken = self._taken[bucket]
        for key, amount in rooms:
            taken[key] += amount
        return bucket

    def _has(self, bucket: int, rooms: Sequence[Room]) -> bool:
        """Return whether a bucket has room; the first matrix of a process always fits."""
        if bucket >= len(self._taken):
            return True
        taken = self._taken[bucket]
        for key, amount in rooms:
            before = taken.get(key, 0)
            if before and before + amount > self.limit:
                return False
        return True


class Rooms:
    """Room that matrices take of processes.

    Args:
        topology: Groups in which they are exchanged.
        kinds: Kinds of all matrices of a plan.
    """

    def __init__(self, topology: Topology, kinds: Sequence[MatrixKind]) -> None:
        self._topology = topology
        # Exchanges of parameters with different replicated axes take place at the same time.
        self._parts = len({kind.axes for kind in set(kinds)})
        self._largest: dict[tuple[MatrixKind, int], tuple[int, int]] = {}

    def of(self, kind: MatrixKind, owner: int, *, gathers: bool, returns: bool) -> list[Room]:
        """Return the room that a matrix takes.

        Args:
            kind: Its kind.
            owner: The process that computes it.
            gathers: Whether it is gathered there.
            returns: Whether anything is sent back.
        """
        rooms: list[Room] = [(("owner", owner), kind.nbytes)]
        if gathers and len(kind.shares(owner)) <= FEW:
            rooms.extend(self._of_each(kind, owner))
        elif gathers:
            rooms.extend(self._of_all(kind, owner))
        elif returns:  # other processes hold no more than the two numbers of a rule
            rooms.append((("copy", kind.axes, 0), kind.per_matrix_bytes * self._parts))
        return rooms

    def _of_each(self, kind: MatrixKind, owner: int) -> Iterator[Room]:
        """Yield the room that a matrix with few holders takes of each of them."""
        topology = self._topology
        passed: dict[int, int] = defaultdict(int)
        two_hops = topology.grid_of(kind.axes) is not None
        for rank, share in kind.shares(owner).items():
            if rank != owner:
                size = _most(kind, share)
                yield ("holder", rank), size
                if two_hops:
                    passed[topology.via(kind.axes, rank, owner)] += size
        for rank, size in passed.items():
            yield ("relay", rank), size

    def _of_all(self, kind: MatrixKind, owner: int) -> Iterator[Room]:
        """Yield the room that a matrix with many holders takes of the owner's copy."""
        topology, axes = self._topology, kind.axes
        group, places = topology.cut_group(axes, owner), topology.places(axes)
        if (kind, group[0]) not in self._largest:
            of_node: dict[int, int] = defaultdict(int)
            sizes = {rank: _most(kind, share) for rank, share in kind.shares(owner).items()}
            for rank, size in sizes.items():
                of_node[places[rank][0]] += size
            self._largest[kind, group[0]] = max(sizes.values()), max(of_node.values())
        largest, of_node_most = self._largest[kind, group[0]]
        yield ("copy", axes, group[0]), largest * self._parts
        if topology.grid_of(axes) is not None:
            yield ("column", axes, group[places[owner][1]]), of_node_most * self._parts


def _most(kind: MatrixKind, share: tuple[int, int]) -> int:
    """Return the bytes of a share on its way to the owner or back, whichever are more."""
    gathered, scattered = share
    return max(gathered + kind.per_matrix_bytes, scattered)
