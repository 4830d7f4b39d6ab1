"""Schedule of one process: the fragments that it sends, receives, passes on and keeps, per bucket.

Momenta and buffers of a matrix are gathered on its owner within one copy of the parameter, the cut
group, and directions scattered there. Copies then broadcast them to each other. All fragments for
one process are one message of bytes, whatever their dtypes.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from polarlight.execution.sharded.layouts import Intervals
from polarlight.execution.sharded.plan import ShardedPlan
from polarlight.execution.sharded.regions import Segment, segments
from polarlight.execution.sharded.specs import MATRIX
from polarlight.execution.sharded.topology import MeshAxes

ALIGNMENT = 8
"""Bytes to a multiple of which a message is filled: fragments of any dtype start aligned."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """Part of a matrix, or of one of its buffers, that one shard holds.

    Attributes:
        matrix: Number of the matrix in the plan.
        param: Number of its parameter.
        name: `MATRIX`, or the name of the buffer.
        segment: Slices of the shard and of the matrix's block.
        dtype: Dtype of the matrix or buffer.
    """

    matrix: int
    param: int
    name: str
    segment: Segment
    dtype: torch.dtype

    @property
    def itemsize(self) -> int:
        """Bytes of an entry."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return self.segment.numel * self.itemsize


Messages = dict[int, list[Fragment]]
"""Fragments by the rank of the other process, wide entries first; an order both sides know."""

RelayedMessages = dict[tuple[int, int], list[tuple[int, int]]]
"""(source, destination) of messages that this process passes on: (matrix, bytes) of fragments."""


def message_bytes(sizes: Iterator[int] | Sequence[int]) -> int:
    """Return the bytes of a message with fragments of these sizes, filled up to `ALIGNMENT`."""
    return -(-sum(sizes) // ALIGNMENT) * ALIGNMENT


def fragments_bytes(fragments: Iterable[Fragment]) -> int:
    """Return the bytes of a message with these fragments, filled up to `ALIGNMENT`."""
    return message_bytes([f.nbytes for f in fragments])


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Exchange:
    """One exchange within a cut group: momenta to owners, or directions from them.

    Attributes:
        outgoing: Messages that this process sends, by destination.
        incoming: Messages that it receives, by source.
        relayed: Messages that go through it, its own ones too, in a two-level exchange.
    """

    outgoing: Messages
    incoming: Messages
    relayed: RelayedMessages

    def masked(self, active: Sequence[bool]) -> "Exchange":
        """Return a copy without the fragments of inactive matrices (`active` by matrix number)."""
        outgoing, incoming = (
            {rank: _masked(fragments, active) for rank, fragments in messages.items()}
            for messages in (self.outgoing, self.incoming)
        )
        relayed = {
            pair: [(n, size) for n, size in parts if active[n]]
            for pair, parts in self.relayed.items()
        }
        return Exchange(outgoing, incoming, relayed)


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Fragments that one copy sends to the others, each process to those with the same shard.

    Attributes:
        source: Rank of the process that has them.
        fragments: The same on all of these processes.
    """

    source: int
    fragments: list[Fragment]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Work of one process on one bucket of matrices.

    Attributes:
        matrices: Numbers of the matrices that it computes.
        local: Those of them that it holds in full with all buffers: they are computed in place.
        own_fragments: Fragments of the others that it holds itself.
        gather: Exchanges of momenta and buffers to the owners, by replicated axes.
        scatter: Exchanges of directions and buffers back to the shards, by replicated axes.
        rounds: Broadcasts between copies, by replicated axes; those of a round at the same time.
    """

    matrices: list[int]
    local: set[int]
    own_fragments: list[Fragment] = field(default_factory=list)
    gather: dict[MeshAxes, Exchange] = field(default_factory=dict)
    scatter: dict[MeshAxes, Exchange] = field(default_factory=dict)
    rounds: list[tuple[MeshAxes, list[Broadcast]]] = field(default_factory=list)

    def masked(self, active: Sequence[bool]) -> "Bucket":
        """Return a copy without inactive matrices (`active` by matrix number); may be empty."""
        return Bucket(
            [n for n in self.matrices if active[n]],
            {n for n in self.local if active[n]},
            _masked(self.own_fragments, active),
            {replicated: exchange.masked(active) for replicated, exchange in self.gather.items()},
            {replicated: exchange.masked(active) for replicated, exchange in self.scatter.items()},
            [
                (
                    replicated,
                    [replace(b, fragments=_masked(b.fragments, active)) for b in broadcasts],
                )
                for replicated, broadcasts in self.rounds
            ],
        )


def _masked(fragments: Sequence[Fragment], active: Sequence[bool]) -> list[Fragment]:
    """Return the fragments of active matrices (`active` by matrix number)."""
    return [f for f in fragments if active[f.matrix]]


class ProcessSchedule:
    """Work of one process in a step, bucket by bucket.

    Args:
        plan: The plan that all processes agreed on.
        rank: Rank of the process in the plan's group.
    """

    def __init__(self, plan: ShardedPlan, rank: int) -> None:
        """Make this process's part of every bucket of the plan; all parameters are active."""
        self.plan, self.rank = plan, rank
        # Index intervals that a process holds, by (parameter, tensor, rank).
        self._held: dict[tuple[int, str, int], tuple[Intervals, ...]] = {}
        self.rowwise = plan.rowwise
        # Ranks that compute each shared matrix, by the number of this process's part.
        self.shared = {
            number: matrix.ranks
            for matrix in plan.shared
            for number, owner in zip(matrix.numbers, matrix.ranks, strict=True)
            if owner == rank
        }
        # Names of buffers, and of the gradient where it is read, of the parameters that have any.
        names = ([n for n in spec.layouts if n != MATRIX] for spec in plan.params)
        self.buffered = {number: some for number, some in enumerate(names) if some}
        self.active: Collection[int] | None = None  # numbers of parameters; None for all
        self.buckets = [self._bucket(numbers) for numbers in plan.buckets]
        # Tensors of the matrices that are computed in place, by number.
        local = (number for bucket in self.buckets for number in bucket.local)
        self.local_fragments = {n: list(self._all_fragments(n, rank)) for n in local}

    def masked(self, active: Collection[int]) -> "ProcessSchedule":
        """Return a copy with the parameters of these numbers alone; owners stay the same."""
        kept = copy(self)
        of = [matrix.param in active for matrix in self.plan.matrices]
        kept.buckets = [bucket.masked(of) for bucket in self.buckets]
        kept.active = active
        for name in ("completions", "sent_params"):
            kept.__dict__.pop(name, None)
        kept.rowwise = {n: rowwise for n, rowwise in self.rowwise.items() if n in active}
        return kept

    def is_active(self, param: int) -> bool:
        """Return whether the parameter with this number takes part in the step."""
        return self.active is None or param in self.active

    @cached_property
    def sent_params(self) -> list[list[int]]:
        """Numbers of the parameters of which this process sends shards to owners, per bucket."""
        exchanges = [bucket.gather.values() for bucket in self.buckets]
        found = [
            dict.fromkeys(
                fragment.param
                for exchange in of_bucket
                for fragments in exchange.outgoing.values()
                for fragment in fragments
            )
            for of_bucket in exchanges
        ]
        return [list(numbers) for numbers in found]

    @cached_property
    def completions(self) -> dict[tuple[int, int], list[int]]:
        """{(bucket, round): parameters whose directions are then complete}; round -1: scatter.

        The round is -1 for those that need none. Row-wise parameters and those without a matrix in
        any bucket are not listed.
        """
        last: dict[int, tuple[int, int]] = {}
        matrices = self.plan.matrices
        for b, (numbers, bucket) in enumerate(zip(self.plan.buckets, self.buckets, strict=True)):
            for number in numbers:
                if self.is_active(matrices[number].param):
                    last[matrices[number].param] = (b, -1)
            for r, (_, broadcasts) in enumerate(bucket.rounds):
                for fragment in (f for b_ in broadcasts for f in b_.fragments):
                    last[fragment.param] = (b, r)
        found: dict[tuple[int, int], list[int]] = {}
        for param, when in sorted(last.items()):
            found.setdefault(when, []).append(param)
        return found

    def _bucket(self, matrix_numbers: Sequence[int]) -> Bucket:
        """Return this process's part in a bucket: its matrices, its exchanges and broadcasts."""
        plan, rank = self.plan, self.rank
        own = [n for n in matrix_numbers if plan.owners[n] == rank]
        bucket = Bucket(own, {n for n in own if not plan.gathered[n]})
        # Fragments that copies broadcast: {replicated mesh dimensions: {source: fragments}}.
        broadcast: dict[MeshAxes, dict[int, list[Fragment]]] = {}
        for number in matrix_numbers:
            replicated, owner = plan.replicated_of(number), plan.owners[number]
            here, there = plan.coordinates[rank], plan.coordinates[owner]
            if all(here[axis] == there[axis] for axis in replicated):  # in the owner's copy
                if plan.gathered[number]:
                    self._add_exchange(bucket.gather, number, gather=True)
                if plan.returned[number]:
                    self._add_exchange(bucket.scatter, number, gather=False)
                if plan.gathered[number] and owner == rank:
                    bucket.own_fragments.extend(self._all_fragments(number, rank))
            held = self._all_fragments(number, rank) if replicated else ()
            if fragments := [f for f in held if plan.matrices[number].is_written(f.name)]:
                # The process of the owner's copy that holds the same shard.
                place = (there[k] if k in replicated else c for k, c in enumerate(here))
                source = plan.holders.rank_at[tuple(place)]
                broadcast.setdefault(replicated, {}).setdefault(source, []).extend(fragments)
        exchanges = (*bucket.gather.values(), *bucket.scatter.values())
        messages = [m for e in exchanges for m in (*e.outgoing.values(), *e.incoming.values())]
        for fragments in messages:
            fragments.sort(key=_wide_first)
        bucket.rounds.extend(self._rounds(broadcast))
        return bucket

    def _rounds(
        self, by_replicated_and_source: dict[MeshAxes, dict[int, list[Fragment]]]
    ) -> Iterator[tuple[MeshAxes, list[Broadcast]]]:
        """Yield rounds (replicated dimensions, broadcasts) of at most `bucket_bytes` each."""
        limit = self.plan.options.bucket_bytes
        for replicated, by_source in sorted(by_replicated_and_source.items()):
            started: list[Broadcast] = []
            total = 0
            for source, fragments in sorted(by_source.items()):
                for part in _capped_parts(fragments, limit):
                    size = fragments_bytes(part)
                    if started and total + size > limit:
                        yield replicated, started
                        started, total = [], 0
                    started.append(Broadcast(source, sorted(part, key=_wide_first)))
                    total += size
            if started:
                yield replicated, started

    def _add_exchange(
        self, exchanges: dict[MeshAxes, Exchange], matrix_number: int, *, gather: bool
    ) -> None:
        """Add to `exchanges` this process's fragments in a matrix's gather, or else its scatter."""
        plan, rank = self.plan, self.rank
        replicated, owner = plan.replicated_of(matrix_number), plan.owners[matrix_number]
        exchange = exchanges.setdefault(replicated, Exchange({}, {}, {}))
        if owner == rank:
            mine = exchange.incoming if gather else exchange.outgoing
            peers = [
                (peer, peer) for peer in plan.kinds[matrix_number].shares(owner) if peer != rank
            ]
        else:
            mine = exchange.outgoing if gather else exchange.incoming
            peers = [(owner, rank)]
        for peer, holder in peers:
            if fragments := self._exchanged_fragments(matrix_number, holder, gather):
                mine.setdefault(peer, []).extend(fragments)
        if plan.topology.grid_of(replicated) is not None:
            self._add_relayed(exchange.relayed, matrix_number, gather)

    def _add_relayed(self, relayed: RelayedMessages, matrix_number: int, gather: bool) -> None:
        """Add to `relayed` the bytes of a matrix that this process passes on in two hops."""
        plan, rank, owner = self.plan, self.rank, self.plan.owners[matrix_number]
        kind = plan.kinds[matrix_number]
        places = plan.topology.places(kind.replicated)
        if places[owner][1] != places[rank][1]:
            return
        shares = kind.shares(owner)
        extra = kind.extra_gathered(owner) if gather else []
        for peer in plan.topology.first_hop_group(kind.replicated, rank):
            if peer == owner or peer not in shares:
                continue
            size = shares[peer][0 if gather else 1] + sum(s for by, s in extra if by == peer)
            if size:
                pair = (peer, owner) if gather else (owner, peer)
                relayed.setdefault(pair, []).append((matrix_number, size))

    def _exchanged_fragments(self, matrix_number: int, peer: int, gather: bool) -> list[Fragment]:
        """Return a matrix's fragments that `peer` sends to the owner (`gather`), or gets back."""
        kind, owner = self.plan.kinds[matrix_number], self.plan.owners[matrix_number]
        is_written = self.plan.matrices[matrix_number].is_written
        return [
            fragment
            for name, some in kind.entries.items()
            if peer in some and (kind.sends(name, peer, owner) if gather else is_written(name))
            for fragment in self._tensor_fragments(matrix_number, name, peer)
        ]

    def _all_fragments(self, matrix_number: int, rank: int) -> Iterator[Fragment]:
        """Yield the fragments of a matrix and its buffers that a process holds."""
        for name in self.plan.matrices[matrix_number].blocks:
            yield from self._tensor_fragments(matrix_number, name, rank)

    def _tensor_fragments(self, matrix_number: int, name: str, rank: int) -> Iterator[Fragment]:
        """Yield a process's fragments of one tensor of a matrix: `MATRIX` or a named buffer."""
        matrix = self.plan.matrices[matrix_number]
        if rank not in self.plan.kinds[matrix_number].entries[name]:
            return
        spec, key = self.plan.params[matrix.param], (matrix.param, name, rank)
        if key not in self._held:
            self._held[key] = spec.layouts[name].held(self.plan.coordinates[rank])
        for segment in segments(matrix.blocks[name], self._held[key]):
            yield Fragment(matrix_number, matrix.param, name, segment, spec.dtypes[name])


def _wide_first(fragment: Fragment) -> int:
    """Sort key: larger item sizes first, so that every fragment is aligned for its dtype."""
    return -fragment.itemsize


def _capped_parts(fragments: Sequence[Fragment], limit: int) -> Iterator[list[Fragment]]:
    """Yield consecutive fragments in lists of at most `limit` bytes; a larger one is alone."""
    part: list[Fragment] = []
    size = 0
    for fragment in fragments:
        if part and size + fragment.nbytes > limit:
            yield part
            part, size = [], 0
        part.append(fragment)
        size += fragment.nbytes
    if part:
        yield part
