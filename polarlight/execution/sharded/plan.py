"""One step on many processes, decided beforehand: who owns which matrix, and in which order.

The same on every process: it is made of shapes, layouts and rules, and nothing of it is measured.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import inf, prod

from polarlight.execution.cost import cost, flops
from polarlight.execution.sharded import assignment
from polarlight.execution.sharded.layouts import Coordinate, Layout, Places
from polarlight.execution.sharded.regions import Block, overlap
from polarlight.execution.sharded.rowwise import Stay, on_rows, staying
from polarlight.execution.sharded.units import MOMENTUM, Item, Unit, units_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a plan may decide.

    Attributes:
        spread: A matrix stays with a process that has all of it up to this multiple of the mean
            load, at least 1; every other matrix goes where least is to be done.
        bucket_bytes: About how much a process receives at a time. While one bucket is computed,
            the next is on its way and the last one's results are.
        row_bytes: From this size on a matrix whose rows are cut stays where it lies, if its rule
            needs of the others' rows no more than their sums; smaller ones travel, as that is one
            message for many.
        sum_weight: A summed byte costs as much as this many that are sent to an owner: less than 1
            where the network adds up by itself, 0 to keep every matrix that can where its rows lie.
    """

    spread: float = 1.1
    bucket_bytes: int = 128 * 2**20
    row_bytes: int = 2**20
    sum_weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.spread >= 1:
            raise ValueError(f"spread must be >= 1, got {self.spread}")
        if self.bucket_bytes < 1:
            raise ValueError(f"bucket_bytes must be >= 1, got {self.bucket_bytes}")
        if self.row_bytes < 0:
            raise ValueError(f"row_bytes must be >= 0, got {self.row_bytes}")
        if not 0 <= self.sum_weight < inf:
            raise ValueError(f"sum_weight must be >= 0 and finite, got {self.sum_weight}")


@dataclass(frozen=True)
class Plan:
    """Owners and order of all matrices of some parameters.

    Attributes:
        items: The parameters.
        coordinates: Of every process of the group, by rank.
        options: What was left open.
    """

    items: Sequence[Item]
    coordinates: Sequence[Coordinate]
    options: Options

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self.coordinates)

    @cached_property
    def units(self) -> list[Unit]:
        """Every matrix that has an owner, in the order of the parameters and their views."""
        owned = [(i, item) for i, item in enumerate(self.items) if i not in self.rowwise]
        return [unit for number, item in owned for unit in units_of(number, item)]

    @cached_property
    def rowwise(self) -> dict[int, Stay]:
        """Parameters whose rows are computed where they lie: no owner, and sums are all they send.

        By number; see `staying`.
        """
        return staying(self.items, self.options.row_bytes, self.options.sum_weight)

    @cached_property
    def _on_rows(self) -> tuple[list[float], list[int]]:
        """Cost and flops of every process for the parameters that stay where their rows lie."""
        costs, total = [0.0] * self.size, [0] * self.size
        for number in self.rowwise:
            item = self.items[number]
            shapes = [item.layouts[MOMENTUM].local_shape(where) for where in self.coordinates]
            known = {shape: on_rows(item, shape[-2]) for shape in set(shapes)}
            for rank, shape in enumerate(shapes):
                found = known[shape]
                if found is not None:
                    costs[rank] += prod(shape[:-2]) * found.cost
                    total[rank] += prod(shape[:-2]) * found.flops
        return costs, total

    @cached_property
    def ranks(self) -> dict[Coordinate, int]:
        """The process at each coordinate."""
        return {coordinate: rank for rank, coordinate in enumerate(self.coordinates)}

    @cached_property
    def costs(self) -> list[float]:
        """What each matrix costs, in flops."""
        return [cost(self.items[u.item].rule, *u.shapes[MOMENTUM]) for u in self.units]

    @cached_property
    def owners(self) -> list[int]:
        """The process that computes each matrix."""
        holders = [self._holders(unit) for unit in self.units]
        busy, _ = self._on_rows
        return assignment.owners(self.costs, holders, self.size, self.options.spread, busy)

    @cached_property
    def loads(self) -> list[float]:
        """What each process has to do, in flops."""
        return assignment.loads(self.costs, self.owners, self.size, self._on_rows[0])

    @cached_property
    def flops(self) -> list[int]:
        """Flops of the products of each process."""
        total = list(self._on_rows[1])
        for unit, owner in zip(self.units, self.owners, strict=True):
            total[owner] += flops(self.items[unit.item].rule, *unit.shapes[MOMENTUM])
        return total

    @cached_property
    def buckets(self) -> list[list[int]]:
        """Numbers of units that are gathered, computed and returned together.

        Every owner's own come first, so that there is something to do while the others travel.
        """
        queues: list[list[int]] = [[] for _ in range(self.size)]
        for number, owner in enumerate(self.owners):
            queues[owner].append(number)
        buckets: list[list[int]] = []
        for queue in queues:
            size = 0
            for number in sorted(queue, key=self._turn):
                bucket = size // self.options.bucket_bytes
                size += self.bytes_of(self.units[number])
                buckets += [[] for _ in range(len(buckets), bucket + 1)]
                buckets[bucket].append(number)
        return [sorted(bucket) for bucket in buckets if bucket]

    def _turn(self, number: int) -> tuple[bool, int, int]:
        return self.gathered[number], -self.bytes_of(self.units[number]), number

    @cached_property
    def gathered(self) -> list[bool]:
        """Whether a matrix has to come to its owner."""
        return [
            not self.has_all(unit, owner)
            for unit, owner in zip(self.units, self.owners, strict=True)
        ]

    @cached_property
    def returned(self) -> list[bool]:
        """Whether a direction has to go from its owner to others."""
        copies = [item.layouts[MOMENTUM].copies for item in self.items]
        return [
            gathered or copies[unit.item] > 1
            for unit, gathered in zip(self.units, self.gathered, strict=True)
        ]

    def has_all(self, unit: Unit, rank: int) -> bool:
        """Whether a process has a matrix and its buffers, all of them."""
        layouts = self.items[unit.item].layouts
        where = self.coordinates[rank]
        return all(block.whole_in(layouts[n].held(where)) for n, block in unit.blocks.items())

    def bytes_of(self, unit: Unit) -> int:
        """Of the matrix and of the buffers that travel with it."""
        dtypes = self.items[unit.item].dtypes
        return sum(block.numel * dtypes[name].itemsize for name, block in unit.blocks.items())

    def _holders(self, unit: Unit) -> assignment.Holders:
        """Processes that have all of the matrix itself; None for all of them."""
        layout = self.items[unit.item].layouts[MOMENTUM]
        if layout.copies == self.size:
            return None
        places = layout.where(unit.blocks[MOMENTUM].ranges, whole=True)
        return [rank for place in places for rank in self.ranks_at(place)]

    def meeting(self, layout: Layout, block: Block) -> Iterator[int]:
        """The processes that have some of a block."""
        for places in layout.where(block.ranges, whole=False):
            yield from self.ranks_at(places)

    def ranks_at(self, places: Places) -> Iterator[int]:
        """The processes at a coordinate with open places."""
        mesh = next(iter(self.items)).layouts[MOMENTUM].mesh
        every = zip(places, mesh, strict=True)
        for where in product(*(range(n) if p is None else (p,) for p, n in every)):
            yield self.ranks[where]

    @cached_property
    def fingerprint(self) -> str:
        """The same on processes that agree on everything."""
        text = "\n".join((*map(str, self.items), str(self.options), str(self.owners)))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one process sends and receives in a step."""

    sent: int
    received: int


def traffic(plan: Plan) -> list[Traffic]:
    """Of every process; what stays where it is counts nothing."""
    sums = sum(stay.sent for stay in plan.rowwise.values())
    sent, received = [sums] * plan.size, [sums] * plan.size
    known: dict[tuple[Layout, Block], list[_Part]] = {}
    for unit, owner in zip(plan.units, plan.owners, strict=True):
        item = plan.items[unit.item]
        for name, block in unit.blocks.items():
            layout, size = item.layouts[name], item.dtypes[name].itemsize
            if (layout, block) not in known:
                known[layout, block] = list(_parts(plan, layout, block))
            mine = layout.copy(plan.coordinates[owner])
            for rank, entries, copy in known[layout, block]:
                if rank == owner:
                    continue
                amount = entries * size
                sent[owner] += amount
                received[rank] += amount
                if copy == mine:
                    sent[rank] += amount
                    received[owner] += amount
    return [Traffic(*both) for both in zip(sent, received, strict=True)]


_Part = tuple[int, int, Coordinate]
"""A process, how many entries of a block it has, and which copy they belong to."""


def _parts(plan: Plan, layout: Layout, block: Block) -> Iterator[_Part]:
    """Who has how much of a block; matrices of equal shape and layout share the answer."""
    for places in layout.where(block.ranges, whole=False):
        entries = overlap(block, layout.held(tuple(place or 0 for place in places)))
        for rank in plan.ranks_at(places):
            yield rank, entries, layout.copy(plan.coordinates[rank])
