"""Buckets of matrices that are exchanged at the same time, bounded for every process.

A matrix is charged to its owner, which gathers it, to the processes that hold a part of it, and to
those that pass it on in two hops. Where many processes hold parts of a matrix, one account of all
of them takes the largest part, apart from the accounts of single processes: no process sends,
receives or passes on more than twice the limit in one bucket.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from polarlight.execution.sharded.kinds import MatrixKind
from polarlight.execution.sharded.topology import Topology

FEW = 64
"""Holders of a matrix up to which the bytes of each one are counted apart."""

Charge = tuple[Hashable, int]
"""(account, bytes): what a matrix takes of a process, or of all processes of a group."""


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

    def add(self, matrices: Sequence[int], charges: Sequence[Charge], start: int) -> int:
        """Add matrices to the first bucket from `start` on with room; return the bucket's number.

        Args:
            matrices: Number of a matrix, or of all parts of one: they share a bucket.
            charges: The bytes that they take, each account once.
            start: First bucket to try: that of the owner's last matrix.
        """
        bucket = start
        while not self._has_room(bucket, charges):
            bucket += 1
        while len(self.numbers) <= bucket:
            self.numbers.append([])
            self._taken.append(defaultdict(int))
        self.numbers[bucket].extend(matrices)
        taken = self._taken[bucket]
        for key, amount in charges:
            taken[key] += amount
        return bucket

    def _has_room(self, bucket: int, charges: Sequence[Charge]) -> bool:
        """Return whether no account exceeds `limit` with these bytes; an empty account has room."""
        if bucket >= len(self._taken):
            return True
        taken = self._taken[bucket]
        for key, amount in charges:
            before = taken.get(key, 0)
            if before and before + amount > self.limit:
                return False
        return True


class Charges:
    """Bytes that a matrix takes of a bucket's limit, per process or group of processes.

    Args:
        topology: Groups in which they are exchanged.
        kinds: Kinds of all matrices of a plan.
    """

    def __init__(self, topology: Topology, kinds: Sequence[MatrixKind]) -> None:
        """Keep the topology; count the sets of replicated dimensions among the kinds."""
        self._topology = topology
        self._parts = len({kind.replicated for kind in set(kinds)})
        self._largest: dict[tuple[MatrixKind, int], tuple[int, int]] = {}

    def of_matrix(
        self, kind: MatrixKind, owner: int, *, gathers: bool, returns: bool
    ) -> list[Charge]:
        """Return the bytes that a matrix takes of a bucket, per account (a process or a group).

        Args:
            kind: Its kind.
            owner: The process that computes it.
            gathers: Whether it is gathered there.
            returns: Whether anything is sent back.
        """
        charges: list[Charge] = [(("owner", owner), kind.nbytes)]
        if gathers and len(kind.shares(owner)) <= FEW:
            charges.extend(self._of_each_holder(kind, owner))
        elif gathers:
            charges.extend(self._of_holders_together(kind, owner))
        elif returns:  # other processes hold no more than the two numbers of a rule
            charges.append((("copy", kind.replicated, 0), kind.per_matrix_bytes * self._parts))
        return charges

    def _of_each_holder(self, kind: MatrixKind, owner: int) -> Iterator[Charge]:
        """Yield ("holder" or "relay", rank) and the larger way's bytes; the owner is left out."""
        topology = self._topology
        passed: dict[int, int] = defaultdict(int)
        two_hops = topology.grid_of(kind.replicated) is not None
        for rank, share in kind.shares(owner).items():
            if rank != owner:
                size = _charged_bytes(kind, share)
                yield ("holder", rank), size
                if two_hops:
                    passed[topology.via(kind.replicated, rank, owner)] += size
        for rank, size in passed.items():
            yield ("relay", rank), size

    def _of_holders_together(self, kind: MatrixKind, owner: int) -> Iterator[Charge]:
        """Yield (account of a group, bytes): its largest share, and those of its busiest relay."""
        topology, replicated = self._topology, kind.replicated
        group, places = topology.cut_group(replicated, owner), topology.places(replicated)
        if (kind, group[0]) not in self._largest:
            by_group: dict[int, int] = defaultdict(int)
            sizes = {
                rank: _charged_bytes(kind, share) for rank, share in kind.shares(owner).items()
            }
            for rank, size in sizes.items():
                by_group[places[rank][0]] += size
            self._largest[kind, group[0]] = max(sizes.values()), max(by_group.values())
        largest, of_group_most = self._largest[kind, group[0]]
        yield ("copy", replicated, group[0]), largest * self._parts
        if topology.grid_of(replicated) is not None:
            yield ("second hop", replicated, group[places[owner][1]]), of_group_most * self._parts


def sum_by_account(parts: Iterable[Sequence[Charge]]) -> list[Charge]:
    """Return one (account, bytes) per account, summed over the parts of a matrix."""
    taken: dict[Hashable, int] = defaultdict(int)
    for charges in parts:
        for account, amount in charges:
            taken[account] += amount
    return list(taken.items())


def _charged_bytes(kind: MatrixKind, share: tuple[int, int]) -> int:
    """Return the larger of a holder's bytes to the owner (`share[0]`) and back (`share[1]`)."""
    gathered, scattered = share
    return max(gathered + kind.per_matrix_bytes, scattered)
