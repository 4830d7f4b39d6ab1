"""A plan as one process carries it out: which pieces it sends, receives and keeps, per bucket."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from polarlight.execution.sharded.layouts import Intervals
from polarlight.execution.sharded.plan import Plan
from polarlight.execution.sharded.regions import Segment, segments
from polarlight.execution.sharded.units import Unit


@dataclass(frozen=True, slots=True)
class Piece:
    """What a shard and a matrix, or its buffer, share.

    Attributes:
        unit: Number of the matrix.
        name: Which of its tensors.
        segment: Where it lies in both.
    """

    unit: int
    name: str
    segment: Segment


@dataclass(frozen=True, slots=True)
class Exchange:
    """One all-to-all: pieces by process, in an order that both sides know."""

    outgoing: list[list[Piece]]
    incoming: list[list[Piece]]


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a process does with one bucket.

    Attributes:
        units: Matrices that it computes.
        here: Those of them that lie here with all their buffers: they are computed in place.
        kept: Pieces of the others that lie here already.
        gather: What comes in, by dtype: matrices and buffers.
        scatter: What goes back: directions and buffers.
    """

    units: list[int]
    here: set[int]
    kept: list[Piece] = field(default_factory=list)
    gather: dict[torch.dtype, Exchange] = field(default_factory=dict)
    scatter: dict[torch.dtype, Exchange] = field(default_factory=dict)


class Schedule:
    """The buckets of one process.

    Args:
        plan: What all processes agreed on.
        rank: This one.
    """

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank = plan, rank
        self._held: dict[tuple[int, str, int], tuple[Intervals, ...]] = {}
        self.buckets = [self._bucket(numbers) for numbers in plan.buckets]

    def _bucket(self, numbers: Sequence[int]) -> Bucket:
        plan, rank = self.plan, self.rank
        own = [n for n in numbers if plan.owners[n] == rank]
        bucket = Bucket(own, {n for n in own if not plan.gathered[n]})
        for number in numbers:
            if plan.gathered[number]:
                self._add_gather(bucket, number)
            if plan.returned[number]:
                self._add_scatter(bucket, number)
        return bucket

    def _add_gather(self, bucket: Bucket, number: int) -> None:
        unit, owner = self.plan.units[number], self.plan.owners[number]
        for name in unit.blocks:
            exchange = self._exchange(bucket.gather, unit, name)
            for peer in self._peers(unit, owner, name, same_copy=True):
                pieces = self._pieces(number, name, peer)
                if peer == owner:
                    bucket.kept.extend(pieces if owner == self.rank else ())
                elif owner == self.rank:
                    exchange.incoming[peer].extend(pieces)
                else:
                    exchange.outgoing[owner].extend(pieces)

    def _add_scatter(self, bucket: Bucket, number: int) -> None:
        unit, owner = self.plan.units[number], self.plan.owners[number]
        for name in unit.blocks:
            exchange = self._exchange(bucket.scatter, unit, name)
            for peer in self._peers(unit, owner, name, same_copy=False):
                if peer == owner:
                    continue
                pieces = self._pieces(number, name, peer)
                if owner == self.rank:
                    exchange.outgoing[peer].extend(pieces)
                else:
                    exchange.incoming[owner].extend(pieces)

    def _exchange(self, exchanges: dict[torch.dtype, Exchange], unit: Unit, name: str) -> Exchange:
        """The exchange of a dtype; every process has it, also those that move nothing."""
        dtype = self.plan.items[unit.item].dtypes[name]
        if dtype not in exchanges:
            size = self.plan.size
            exchanges[dtype] = Exchange([[] for _ in range(size)], [[] for _ in range(size)])
        return exchanges[dtype]

    def _peers(self, unit: Unit, owner: int, name: str, *, same_copy: bool) -> Iterator[int]:
        """Who has some of a tensor: everyone, seen from its owner; seen from others, they."""
        layout = self.plan.items[unit.item].layouts[name]
        where = self.plan.coordinates
        peers = self.plan.meeting(layout, unit.blocks[name]) if owner == self.rank else [self.rank]
        for peer in peers:
            if not same_copy or layout.copy(where[peer]) == layout.copy(where[owner]):
                yield peer

    def _pieces(self, number: int, name: str, peer: int) -> Iterator[Piece]:
        """What a process has of a tensor."""
        unit = self.plan.units[number]
        key = unit.item, name, peer
        if key not in self._held:
            layout = self.plan.items[unit.item].layouts[name]
            self._held[key] = layout.held(self.plan.coordinates[peer])
        for segment in segments(unit.blocks[name], self._held[key]):
            yield Piece(number, name, segment)
