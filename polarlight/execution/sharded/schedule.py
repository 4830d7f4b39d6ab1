"""Schedule of one process: the fragments that it sends, receives and keeps, per bucket."""

from collections.abc import Collection, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field

import torch

from polarlight.execution.sharded.layouts import Intervals
from polarlight.execution.sharded.plan import Plan
from polarlight.execution.sharded.regions import Segment, segments
from polarlight.execution.sharded.specs import MatrixSpec
from polarlight.linalg.slot import GRADIENT


@dataclass(frozen=True, slots=True)
class Fragment:
    """Part of a matrix, or of one of its buffers, that one shard holds.

    Attributes:
        matrix: Number of the matrix in the plan.
        name: `MATRIX`, or the name of the buffer.
        segment: Slices of the shard and of the matrix's block.
    """

    matrix: int
    name: str
    segment: Segment


@dataclass(frozen=True, slots=True)
class Exchange:
    """One all-to-all: fragments by process, in an order that both sides know."""

    outgoing: list[list[Fragment]]
    incoming: list[list[Fragment]]

    def masked(self, active: Sequence[bool]) -> "Exchange":
        """Return the exchange without the fragments of matrices that are not active."""
        return Exchange(
            [_masked(fragments, active) for fragments in self.outgoing],
            [_masked(fragments, active) for fragments in self.incoming],
        )


@dataclass(frozen=True, slots=True)
class Bucket:
    """Work of one process on one bucket of matrices.

    Attributes:
        matrices: Numbers of the matrices that it computes.
        local: Those of them that it holds in full with all buffers: they are computed in place.
        own_fragments: Fragments of the others that it holds itself.
        gather: Exchanges of momenta and buffers to the owners, by dtype.
        scatter: Exchanges of directions and buffers back to the shards, by dtype.
    """

    matrices: list[int]
    local: set[int]
    own_fragments: list[Fragment] = field(default_factory=list)
    gather: dict[torch.dtype, Exchange] = field(default_factory=dict)
    scatter: dict[torch.dtype, Exchange] = field(default_factory=dict)

    def masked(self, active: Sequence[bool]) -> "Bucket":
        """Return the bucket without matrices that are not active; it may be empty."""
        return Bucket(
            [n for n in self.matrices if active[n]],
            {n for n in self.local if active[n]},
            _masked(self.own_fragments, active),
            {dtype: exchange.masked(active) for dtype, exchange in self.gather.items()},
            {dtype: exchange.masked(active) for dtype, exchange in self.scatter.items()},
        )


def _masked(fragments: Sequence[Fragment], active: Sequence[bool]) -> list[Fragment]:
    """Return the fragments of active matrices."""
    return [f for f in fragments if active[f.matrix]]


class ProcessSchedule:
    """Buckets of one process.

    Args:
        plan: The plan that all processes agreed on.
        rank: Rank of the process in the plan's group.
    """

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank = plan, rank
        self._held: dict[tuple[int, str, int], tuple[Intervals, ...]] = {}
        self.rowwise = plan.rowwise
        self.buckets = [self._bucket(numbers) for numbers in plan.buckets]

    def masked(self, active: Collection[int]) -> "ProcessSchedule":
        """Return the schedule of the parameters with these numbers alone, with owners unchanged."""
        kept = copy(self)
        of = [matrix.param in active for matrix in self.plan.matrices]
        kept.buckets = [bucket.masked(of) for bucket in self.buckets]
        kept.rowwise = {n: rowwise for n, rowwise in self.rowwise.items() if n in active}
        return kept

    def _bucket(self, numbers: Sequence[int]) -> Bucket:
        """Return the work of this process on the bucket with these matrices."""
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
        """Add the fragments of a matrix and its buffers that are sent to the owner."""
        matrix, owner = self.plan.matrices[number], self.plan.owners[number]
        for name in matrix.blocks:
            exchange = self._exchange(bucket.gather, matrix, name)
            for peer in self._exchange_partners(matrix, owner, name, same_copy=True):
                fragments = self._fragments(number, name, peer)
                if peer == owner:
                    bucket.own_fragments.extend(fragments if owner == self.rank else ())
                elif owner == self.rank:
                    exchange.incoming[peer].extend(fragments)
                else:
                    exchange.outgoing[owner].extend(fragments)

    def _add_scatter(self, bucket: Bucket, number: int) -> None:
        """Add the fragments of a direction and its buffers that the owner sends back."""
        matrix, owner = self.plan.matrices[number], self.plan.owners[number]
        for name in matrix.blocks:
            if name == GRADIENT:  # read, never changed
                continue
            exchange = self._exchange(bucket.scatter, matrix, name)
            for peer in self._exchange_partners(matrix, owner, name, same_copy=False):
                if peer == owner:
                    continue
                fragments = self._fragments(number, name, peer)
                if owner == self.rank:
                    exchange.outgoing[peer].extend(fragments)
                else:
                    exchange.incoming[owner].extend(fragments)

    def _exchange(
        self, exchanges: dict[torch.dtype, Exchange], matrix: MatrixSpec, name: str
    ) -> Exchange:
        """Return the exchange of a tensor's dtype; every process has it, also with no fragment."""
        dtype = self.plan.params[matrix.param].dtypes[name]
        if dtype not in exchanges:
            size = self.plan.size
            exchanges[dtype] = Exchange([[] for _ in range(size)], [[] for _ in range(size)])
        return exchanges[dtype]

    def _exchange_partners(
        self, matrix: MatrixSpec, owner: int, name: str, *, same_copy: bool
    ) -> Iterator[int]:
        """Yield ranks that exchange fragments of a tensor with its owner, seen from this process.

        On the owner: all that hold a fragment. On another process: itself. With `same_copy`, only
        those in the owner's copy of a replicated tensor, so that each entry is sent once.
        """
        layout = self.plan.params[matrix.param].layouts[name]
        where = self.plan.coordinates
        block = matrix.blocks[name]
        holders = self.plan.holders_of(layout, block) if owner == self.rank else [self.rank]
        for rank in holders:
            if not same_copy or layout.copy_index(where[rank]) == layout.copy_index(where[owner]):
                yield rank

    def _fragments(self, number: int, name: str, rank: int) -> Iterator[Fragment]:
        """Yield the fragments of one tensor that a process holds."""
        matrix = self.plan.matrices[number]
        key = matrix.param, name, rank
        if key not in self._held:
            layout = self.plan.params[matrix.param].layouts[name]
            self._held[key] = layout.held(self.plan.coordinates[rank])
        for segment in segments(matrix.blocks[name], self._held[key]):
            yield Fragment(number, name, segment)
