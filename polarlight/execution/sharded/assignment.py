"""Assignment of matrices to processes: integers alone, equal on every process.

Longest processing time first: matrices in order of falling cost, each to the process with the
least load. The makespan is at most 4/3 of the best (Graham 1969), and within a few per cent of it
for many matrices. A matrix that a process holds in full stays there up to a limit on the load.
"""

from collections.abc import Sequence
from heapq import heapify, heapreplace
from math import gcd

Holders = Sequence[int] | None
"""Processes that hold a matrix in full; None means all of them."""


def owners(
    costs: Sequence[float],
    holders: Sequence[Holders],
    processes: int,
    spread: float = 1.1,
    base_loads: Sequence[float] = (),
    transfer_costs: Sequence[float] = (),
    part_holders: Sequence[Holders] = (),
) -> list[int]:
    """Return each matrix's owner: a process that holds it, or else the least loaded process.

    Args:
        costs: Cost of each matrix, in any unit.
        holders: Processes that hold each matrix in full; an empty sequence if none does.
        processes: Number of processes.
        spread: A matrix stays with a holder up to this multiple of the mean load, or of the
            costliest matrix where that is more.
        base_loads: Load of each process besides these matrices, in the same unit; zero by default.
        transfer_costs: Additional cost of each matrix for a process that does not hold it in full.
        part_holders: Processes that hold a part of each matrix; None where that is all of them. The
            matrix stays among them up to the same limit, so that it is exchanged by few.

    Returns:
        Numbers in [0, processes), one per matrix.
    """
    loads = list(base_loads) or [0.0] * processes
    whole = [
        cost + more for cost, more in zip(costs, transfer_costs or [0.0] * len(costs), strict=True)
    ]
    mean = (sum(costs) + sum(loads)) / processes
    limit = max(spread * mean, max(costs, default=0.0)) * (1 + 1e-9)
    mean = (sum(whole) + sum(loads)) / processes
    moved_limit = max(spread * mean, max(whole, default=0.0)) * (1 + 1e-9)
    found = [0] * len(costs)
    least = _LoadHeaps(loads)
    for i in sorted(range(len(costs)), key=lambda i: (-whole[i], i)):
        held, cost = holders[i], costs[i]
        rank = least.among(held) if held else -1
        if rank < 0 or loads[rank] + cost > limit:
            some = part_holders[i] if part_holders and held is not None else None
            rank = least.among(some) if some else -1
            if rank < 0 or loads[rank] + whole[i] > moved_limit:
                rank = least.among(None)
            cost = costs[i] if held is None or rank in held else whole[i]
        found[i] = rank
        loads[rank] += cost
    return found


class _LoadHeaps:
    """Heaps of processes by load; the least loaded one is found while the caller adds to `loads`.

    Args:
        loads: Load of each process; the caller adds to it.
    """

    def __init__(self, loads: Sequence[float]) -> None:
        """Keep a reference to the loads, which may only grow."""
        self._loads, self._order = loads, spread_out(len(loads))
        # A heap per set of processes, by identity; its loads are those of some time before.
        self._heaps: dict[int, tuple[Holders, list[tuple[float, int, int]]]] = {}

    def among(self, ranks: Holders) -> int:
        """Return the least loaded of these ranks (None: of all); ties in `spread_out` order."""
        if ranks is not None and len(ranks) == 1:
            return ranks[0]
        if id(ranks) not in self._heaps:
            every = range(len(self._loads)) if ranks is None else ranks
            heap = [(self._loads[rank], self._order[rank], rank) for rank in every]
            heapify(heap)
            self._heaps[id(ranks)] = ranks, heap
        _, heap = self._heaps[id(ranks)]
        while heap[0][0] != self._loads[heap[0][2]]:  # outdated: it has become larger
            _, place, rank = heap[0]
            heapreplace(heap, (self._loads[rank], place, rank))
        return heap[0][2]


def spread_out(processes: int) -> list[int]:
    """Return each rank's place in a permutation in which neighbouring ranks are far apart.

    Equally loaded processes get matrices in this order: owners are spread over copies, first-hop
    groups and places within these, though there be few of them.
    """
    stride = max(1, round(processes * (5**0.5 - 1) / 2))
    while gcd(stride, processes) != 1:
        stride += 1
    place = [0] * processes
    for k in range(processes):
        place[k * stride % processes] = k
    return place


def loads(
    costs: Sequence[float], owners: Sequence[int], processes: int, base_loads: Sequence[float] = ()
) -> list[float]:
    """Return each process's base load plus the costs of the matrices that it owns."""
    total = list(base_loads) or [0.0] * processes
    for cost, rank in zip(costs, owners, strict=True):
        total[rank] += cost
    return total
