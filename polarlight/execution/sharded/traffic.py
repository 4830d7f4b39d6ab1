"""Traffic of a plan: bytes and partners of every process in a step, counted without one."""

from collections.abc import Iterator
from dataclasses import dataclass

from polarlight.execution.sharded.layouts import Coordinate, Layout
from polarlight.execution.sharded.plan import ShardedPlan
from polarlight.execution.sharded.regions import StridedBlock, overlap
from polarlight.execution.sharded.topology import Axes
from polarlight.linalg.slot import GRADIENT


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one process sends and receives in a step; local data is not counted.

    Attributes:
        sent: Bytes sent, those passed on for others included.
        received: Bytes received.
        peers: Processes that it exchanges messages with; broadcasts between copies go to the next
            and come from the last one in a ring.
    """

    sent: float
    received: float
    peers: frozenset[int]


Amounts = list[tuple[int, int, int]]
"""(rank, bytes gathered from it, bytes scattered to it) of the holders of a matrix."""


def traffic(plan: ShardedPlan) -> list[Traffic]:
    """Return the traffic of every process."""
    sums = sum(rowwise.sent for rowwise in plan.rowwise.values())
    sent, received = [float(sums)] * plan.size, [float(sums)] * plan.size
    pairs: set[tuple[int, int]] = set()
    known: Entries = {}
    for number, owner in enumerate(plan.owners):
        axes, amounts = plan.axes_of(number), _amounts(plan, number, known)
        if axes:
            _add_broadcasts(plan, number, amounts, sent, received, pairs)
            inside = set(plan.topology.cut_group(axes, owner))
            amounts = [entry for entry in amounts if entry[0] in inside]
        for rank, gathered, scattered in amounts:
            for here, there in _hops(plan, axes, rank, owner):
                sent[here] += gathered
                received[there] += gathered
                sent[there] += scattered
                received[here] += scattered
                pairs.add((here, there))
    peers: list[set[int]] = [set() for _ in range(plan.size)]
    for here, there in pairs:
        peers[here].add(there)
        peers[there].add(here)
    every = zip(sent, received, map(frozenset, peers), strict=True)
    return [Traffic(*own) for own in every]


Entries = dict[tuple[Layout, StridedBlock], list[tuple[int, int, Coordinate]]]
"""Rank, number of entries and copy index of all holders: equal matrices are counted once."""


def _hops(plan: ShardedPlan, axes: Axes, rank: int, owner: int) -> list[tuple[int, int]]:
    """Return the (sender, receiver) pairs of a message from a process to an owner."""
    if rank == owner:
        return []
    if plan.topology.grid_of(axes) is None:
        return [(rank, owner)]
    via = plan.topology.via(axes, rank, owner)
    return [hop for hop in ((rank, via), (via, owner)) if hop[0] != hop[1]]


def _amounts(plan: ShardedPlan, number: int, known: Entries) -> Amounts:
    """Return the bytes that each holder exchanges for a matrix and its buffers."""
    matrix, owner = plan.matrices[number], plan.owners[number]
    spec = plan.params[matrix.param]
    found: dict[int, tuple[int, int]] = {}
    for name, block in matrix.blocks.items():
        layout, itemsize = spec.layouts[name], spec.dtypes[name].itemsize
        if (layout, block) not in known:
            known[layout, block] = list(_entries_by_holder(plan, layout, block))
        owner_copy = layout.copy_index(plan.coordinates[owner])
        gathers = itemsize * plan.gathered[number]
        scatters = itemsize * plan.returned[number] if not plan.axes_of(number) else itemsize
        if name == GRADIENT:  # read, never changed
            scatters = 0
        for rank, entries, copy in known[layout, block]:
            gathered, scattered = found.get(rank, (0, 0))
            gathered += entries * gathers if copy == owner_copy else 0
            found[rank] = gathered, scattered + entries * scatters
    return [(rank, *both) for rank, both in found.items() if any(both)]


def _add_broadcasts(
    plan: ShardedPlan,
    number: int,
    amounts: Amounts,
    sent: list[float],
    received: list[float],
    pairs: set[tuple[int, int]],
) -> None:
    """Add a matrix's broadcasts among copies to the bytes of every process."""
    axes, owner = plan.axes_of(number), plan.owners[number]
    for rank, _, amount in amounts:
        group = plan.topology.copies(axes, rank)
        sent[rank] += amount * (len(group) - 1) / len(group)
        if not plan.in_one_copy(axes, rank, owner):
            received[rank] += amount
        pairs.add((rank, group[(group.index(rank) + 1) % len(group)]))


def _entries_by_holder(
    plan: ShardedPlan, layout: Layout, block: StridedBlock
) -> Iterator[tuple[int, int, Coordinate]]:
    """Yield the rank of each holder of a block, its number of entries, and its copy index."""
    for pattern in layout.coordinates_of(block.ranges, whole=False):
        entries = overlap(block, layout.held(tuple(index or 0 for index in pattern)))
        for rank in plan.ranks_at(pattern):
            yield rank, entries, layout.copy_index(plan.coordinates[rank])
