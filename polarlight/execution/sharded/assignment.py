"""Who computes what: pure integers, the same on every process that asks.

Longest processing time first: matrices in order of falling cost, each to the process that has least
to do. At worst 4/3 of the best possible finish (Graham 1969); where matrices are many, within a few
per cent. A matrix that lies whole on a process stays there while that process keeps up.
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

Holders = Sequence[int] | None
"""Processes that have all of a matrix; None means all of them."""


def owners(
    costs: Sequence[float],
    holders: Sequence[Holders],
    processes: int,
    spread: float = 1.1,
    busy: Sequence[float] = (),
) -> list[int]:
    """The owner of each matrix.

    Args:
        costs: What each matrix costs, in any unit.
        holders: Who has it whole; an empty sequence if nobody has.
        processes: How many there are.
        spread: A matrix stays with a holder up to this multiple of the mean load, or of the
            costliest matrix where that is more.
        busy: What each process has to do besides, in the same unit; nothing by default.

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
            rank = _idlest(heap, loads)
        found[i] = rank
        loads[rank] += costs[i]
        heappush(heap, (loads[rank], rank))
    return found


def _idlest(heap: list[tuple[float, int]], loads: Sequence[float]) -> int:
    """The process with least to do; entries that are out of date are dropped."""
    while heap[0][0] != loads[heap[0][1]]:
        heappop(heap)
    return heap[0][1]


def loads(
    costs: Sequence[float], owner: Sequence[int], processes: int, busy: Sequence[float] = ()
) -> list[float]:
    """What each process has to do."""
    total = list(busy) or [0.0] * processes
    for cost, rank in zip(costs, owner, strict=True):
        total[rank] += cost
    return total
