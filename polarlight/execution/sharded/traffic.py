"""Traffic of a plan: bytes and partners of every process in a step, counted without one."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from polarlight.execution.sharded.layouts import Coordinate, Layout
from polarlight.execution.sharded.plan import Plan
from polarlight.execution.sharded.regions import Block, overlap
from polarlight.execution.sharded.topology import Axes
from polarlight.linalg.slot import GRADIENT


@dataclass(slots=True)
class Traffic:
    """What one process sends and receives in a step; data that stays on it is not counted.

    Attributes:
        sent: Bytes sent, those passed on for others included.
        received: Bytes received.
        peers: Processes that it exchanges messages with; broadcasts between copies go to the next
            and come from the last one in a ring.
    """

    sent: float = 0
    received: float = 0
    peers: set[int] = field(default_factory=set)


def traffic(plan: Plan) -> list[Traffic]:
    """Return the traffic of every process."""
    sums = sum(rowwise.sent for rowwise in plan.rowwise.values())
    found = [Traffic(sums, sums) for _ in range(plan.size)]
    # Entries by holder depend on layout and block alone: equal matrices are counted once.
    known: dict[tuple[Layout, Block], list[tuple[int, int, Coordinate]]] = {}
    for number, (matrix, owner) in enumerate(zip(plan.matrices, plan.owners, strict=True)):
        spec, axes = plan.params[matrix.param], plan.axes_of(number)
        for name, block in matrix.blocks.items():
            layout, itemsize = spec.layouts[name], spec.dtypes[name].itemsize
            if (layout, block) not in known:
                known[layout, block] = list(_entries_by_holder(plan, layout, block))
            owner_copy = layout.copy_index(plan.coordinates[owner])
            for rank, entries, copy in known[layout, block]:
                amount = entries * itemsize
                if axes and name != GRADIENT:
                    _add_broadcast(plan, found, axes, owner, rank, amount)
                if rank != owner and plan.in_one_copy(axes, rank, owner):
                    returned = plan.returned[number] and name != GRADIENT
                    gathered = plan.gathered[number] and copy == owner_copy
                    ways = [(rank, owner)] * gathered + [(owner, rank)] * returned
                    for pair in ways:
                        _add_message(plan, found, axes, pair, rank, amount)
    return found


def _add_message(
    plan: Plan, found: list[Traffic], axes: Axes, pair: tuple[int, int], peer: int, amount: int
) -> None:
    """Add a message between a process and an owner, over the one that passes it on."""
    source, destination = pair
    hops = [pair]
    if plan.topology.grid_of(axes) is not None:
        via = plan.topology.via(axes, peer, destination if peer == source else source)
        hops = [hop for hop in ((source, via), (via, destination)) if hop[0] != hop[1]]
    for here, there in hops:
        found[here].sent += amount
        found[there].received += amount
        found[here].peers.add(there)
        found[there].peers.add(here)


def _add_broadcast(
    plan: Plan, found: list[Traffic], axes: Axes, owner: int, rank: int, amount: int
) -> None:
    """Add one process's part in a broadcast among copies, of which all but one pass it on."""
    group = plan.topology.copies(axes, rank)
    place = group.index(rank)
    found[rank].sent += amount * (len(group) - 1) / len(group)
    if not plan.in_one_copy(axes, rank, owner):
        found[rank].received += amount
    found[rank].peers |= {group[place - 1], group[(place + 1) % len(group)]}


def _entries_by_holder(
    plan: Plan, layout: Layout, block: Block
) -> Iterator[tuple[int, int, Coordinate]]:
    """Yield the rank of each holder of a block, its number of entries, and its copy index."""
    for pattern in layout.coordinates_of(block.ranges, whole=False):
        entries = overlap(block, layout.held(tuple(index or 0 for index in pattern)))
        for rank in plan.ranks_at(pattern):
            yield rank, entries, layout.copy_index(plan.coordinates[rank])
