"""Assignment of matrices to processes: integers alone, equal on every process.

Longest processing time first: matrices in order of falling cost, each to the process with the
least load. The makespan is at most 4/3 of the best (Graham 1969), and within a few per cent of it
for many matrices. A matrix that a process holds in full stays there up to a limit on the load.
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

Holders = Sequence[int] | None
"""Processes that hold a matrix in full; None means all of them."""


def owners(
    costs: Sequence[float],
    holders: Sequence[Holders],
    processes: int,
    spread: float = 1.1,
    busy: Sequence[float] = (),
) -> list[int]:
    """Return the process that computes each matrix.

    Args:
        costs: Cost of each matrix, in any unit.
        holders: Processes that hold each matrix in full; an empty sequence if none does.
        processes: Number of processes.
        spread: A matrix stays with a holder up to this multiple of the mean load, or of the
            costliest matrix where that is more.
        busy: Load of each process besides these matrices, in the same unit; zero by default.

    Returns:
        Numbers in [0, processes), one per matrix.
    """
    loads = list(busy) or [0.0] * processes
    mean = (sum(costs) + sum(loads)) / processes
    limit = max(spread * mean, max(costs, default=0.0)) * (1 + 1e-9)
    found = [0] * len(costs)
    heap = [(load, rank) for rank, load in enumerate(loads)]
    heapify(heap)
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        held = holders[i]
        rank = min(held, key=loads.__getitem__) if held else -1
        if rank < 0 or loads[rank] + costs[i] > limit:
            rank = _least_loaded(heap, loads)
        found[i] = rank
        loads[rank] += costs[i]
        heappush(heap, (loads[rank], rank))
    return found


def _least_loaded(heap: list[tuple[float, int]], loads: Sequence[float]) -> int:
    """Return the process with the least load; drop outdated entries of the heap."""
    while heap[0][0] != loads[heap[0][1]]:
        heappop(heap)
    return heap[0][1]


def loads(
    costs: Sequence[float], owner: Sequence[int], processes: int, busy: Sequence[float] = ()
) -> list[float]:
    """Return the load of each process under an assignment."""
    total = list(busy) or [0.0] * processes
    for cost, rank in zip(costs, owner, strict=True):
        total[rank] += cost
    return total
