"""One step of a plan, as one process carries it out."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from polarlight.execution.job import Executor, Job
from polarlight.execution.sharded.collectives import Arena, Pending, rows_of, start_exchange
from polarlight.execution.sharded.regions import Block, segments
from polarlight.execution.sharded.schedule import Bucket, Exchange, Piece, Schedule
from polarlight.execution.sharded.units import MOMENTUM, Unit
from polarlight.execution.work import Work, local
from polarlight.linalg.slot import Buffers
from polarlight.rule import HOST_COUNTER

AHEAD = 1
"""Buckets that come in while another one is computed."""

Travelling = dict[torch.dtype, Pending]


def travelling(work: Work) -> dict[str, Tensor]:
    """The buffers of a work that belong to its matrices and are not on the host."""
    parts = work.view.shapes(work.parameter.shape)
    names = dict.fromkeys(name for shape in parts for name in work.rule.buffer_shapes(shape))
    return {name: work.state[name] for name in names if name != HOST_COUNTER}


class Step:
    """Carries a plan out once.

    Args:
        arena: The processes.
        schedule: What this one does.
        works: The parameters that the plan was made for.
        inner: What computes matrices.
    """

    def __init__(
        self, arena: Arena, schedule: Schedule, works: Sequence[Work], inner: Executor
    ) -> None:
        self.arena, self.schedule, self.works, self.inner = arena, schedule, works, inner
        self.units = schedule.plan.units
        self.directions = [torch.empty_like(w.momentum) for w in works]
        self.shards = [
            {MOMENTUM: w.momentum, **{name: local(t) for name, t in travelling(w).items()}}
            for w in works
        ]
        self.blocks: dict[tuple[int, str], Tensor] = {}

    def run(self) -> list[Tensor]:
        """The directions, as far as they lie here; buffers are updated in place."""
        buckets = self.schedule.buckets
        coming = [self._gather(bucket) for bucket in buckets[: AHEAD + 1]]
        for number, stay in self.schedule.plan.rowwise.items():
            self._stay(number, stay.axes)
        going: list[Travelling] = []
        for number, bucket in enumerate(buckets):
            self._arrive(bucket, coming[number])
            self._compute(bucket)
            going.append(self._scatter(bucket))
            if number + AHEAD + 1 < len(buckets):
                coming.append(self._gather(buckets[number + AHEAD + 1]))
            if number:
                self._settle(buckets[number - 1], going[number - 1])
        if buckets:
            self._settle(buckets[-1], going[-1])
        self._count()
        return self.directions

    def _stay(self, number: int, axes: Sequence[int]) -> None:
        """A parameter whose rows are computed where they lie."""
        work, home = self.works[number], self.shards[number]
        here = {name: x.to(self.arena.device, non_blocking=True) for name, x in home.items()}
        matrix = here.pop(MOMENTUM)
        rows = rows_of(work.parameter, axes)
        self.directions[number].copy_(work.rule.direction_on_rows(matrix, rows, here))
        for name, x in here.items():
            if x is not home[name]:
                home[name].copy_(x)

    def _gather(self, bucket: Bucket) -> Travelling:
        """Sends shards to the owners of their matrices."""
        return {
            dtype: self._start(exchange, dtype, [self._shard(p) for p in _all(exchange.outgoing)])
            for dtype, exchange in bucket.gather.items()
        }

    def _scatter(self, bucket: Bucket) -> Travelling:
        """Sends directions and buffers to where they are kept."""
        return {
            dtype: self._start(exchange, dtype, [self._block(p) for p in _all(exchange.outgoing)])
            for dtype, exchange in bucket.scatter.items()
        }

    def _start(self, exchange: Exchange, dtype: torch.dtype, pieces: list[Tensor]) -> Pending:
        device = self.arena.device
        vectors = [piece.reshape(-1).to(device, non_blocking=True) for piece in pieces]
        sent = torch.cat(vectors) if vectors else torch.empty(0, dtype=dtype, device=device)
        return start_exchange(
            sent, _sizes(exchange.outgoing), _sizes(exchange.incoming), self.arena
        )

    def _arrive(self, bucket: Bucket, coming: Travelling) -> None:
        """Puts matrices and buffers together."""
        for number in bucket.units:
            if number in bucket.here:
                continue
            unit = self.units[number]
            for name, block in unit.blocks.items():
                dtype = self.schedule.plan.items[unit.item].dtypes[name]
                empty = torch.empty(block.lengths, dtype=dtype, device=self.arena.device)
                self.blocks[number, name] = empty
        for piece in bucket.kept:
            self._block(piece).copy_(self._shard(piece))
        for dtype, exchange in bucket.gather.items():
            pieces = list(_all(exchange.incoming))
            _unpack(coming.pop(dtype), pieces, [self._block(piece) for piece in pieces])

    def _compute(self, bucket: Bucket) -> None:
        """The directions of this process's own matrices."""
        jobs = []
        for number in bucket.units:
            if number in bucket.here:
                self._take_up(number)
            jobs.append(self._job(number))
        for number, D in zip(bucket.units, self.inner.directions(jobs), strict=True):
            block = self.units[number].blocks[MOMENTUM]
            dtype = self.blocks[number, MOMENTUM].dtype
            self.blocks[number, MOMENTUM] = _as_block(D.to(dtype), block)
            if number in bucket.here:
                self._put_down(number)
        for piece in bucket.kept:
            self._home(piece).copy_(self._block(piece))

    def _take_up(self, number: int) -> None:
        """Matrix and buffers of a unit that lies here, as views; copies if on another device."""
        for piece in self._whole(number):
            shard = self._shard(piece).to(self.arena.device, non_blocking=True)
            self.blocks[number, piece.name] = shard

    def _put_down(self, number: int) -> None:
        """The direction of such a unit, and buffers that were copied."""
        for piece in self._whole(number):
            home = self._home(piece)
            if piece.name == MOMENTUM or home.device != self.blocks[number, piece.name].device:
                home.copy_(self._block(piece))

    def _whole(self, number: int) -> Iterable[Piece]:
        """Each tensor of a unit that lies here: one piece, as its indices are neighbours."""
        plan, unit = self.schedule.plan, self.units[number]
        where = plan.coordinates[self.arena.rank]
        for name, block in unit.blocks.items():
            held = plan.items[unit.item].layouts[name].held(where)
            for segment in segments(block, held):
                yield Piece(number, name, segment)

    def _job(self, number: int) -> Job:
        unit = self.units[number]
        work = self.works[unit.item]
        matrix = _as_matrix(self.blocks[number, MOMENTUM], unit.blocks[MOMENTUM])
        return Job(work.rule, matrix, self._buffers(number, unit, work))

    def _buffers(self, number: int, unit: Unit, work: Work) -> Buffers:
        """As the rule sees them; of the counter a copy, since every process counts for itself."""
        buffers = {
            name: self.blocks[number, name].view(shape)
            for name, shape in unit.shapes.items()
            if name not in (MOMENTUM, HOST_COUNTER)
        }
        if unit.counter is not None:
            place = tuple(map(slice, unit.counter.starts, _ends(unit.counter)))
            counter = work.state[HOST_COUNTER][place]
            buffers[HOST_COUNTER] = counter.reshape(unit.shapes[HOST_COUNTER]).clone()
        return buffers

    def _settle(self, bucket: Bucket, going: Travelling) -> None:
        """Puts directions and buffers where they are kept, and forgets the matrices."""
        for dtype, exchange in bucket.scatter.items():
            pieces = list(_all(exchange.incoming))
            _unpack(going.pop(dtype), pieces, [self._home(piece) for piece in pieces])
        for number in bucket.units:
            for name in self.units[number].blocks:
                del self.blocks[number, name]

    def _count(self) -> None:
        """One more call for every matrix, owned here or not."""
        for work in self.works:
            if HOST_COUNTER in work.state:
                work.state[HOST_COUNTER].add_(1)

    def _shard(self, piece: Piece) -> Tensor:
        return self.shards[self.units[piece.unit].item][piece.name][piece.segment.of_shard]

    def _home(self, piece: Piece) -> Tensor:
        """Where a piece of the result is kept: a direction's place, or the buffer itself."""
        item = self.units[piece.unit].item
        kept = self.directions[item] if piece.name == MOMENTUM else self.shards[item][piece.name]
        return kept[piece.segment.of_shard]

    def _block(self, piece: Piece) -> Tensor:
        return self.blocks[piece.unit, piece.name][piece.segment.of_block]


def _unpack(pending: Pending, pieces: Sequence[Piece], targets: list[Tensor]) -> None:
    """Copies what arrived to where it belongs."""
    received = pending.wait()
    if not pieces:
        return
    sizes = [piece.segment.numel for piece in pieces]
    shapes = [piece.segment.shape for piece in pieces]
    parts = [p.view(shape) for p, shape in zip(received.split(sizes), shapes, strict=True)]
    torch._foreach_copy_(targets, parts)


def _as_matrix(block: Tensor, shape: Block) -> Tensor:
    """A block, seen as [m, n]."""
    m, n = shape.size
    return block.reshape(n, m).mT if shape.turned else block.reshape(m, n)


def _as_block(matrix: Tensor, shape: Block) -> Tensor:
    """A matrix, seen as the block that it came from."""
    return (matrix.mT if shape.turned else matrix).reshape(shape.lengths)


def _all(pieces: Iterable[Iterable[Piece]]) -> Iterable[Piece]:
    return (piece for one in pieces for piece in one)


def _sizes(pieces: Sequence[Sequence[Piece]]) -> list[int]:
    return [sum(piece.segment.numel for piece in one) for one in pieces]


def _ends(block: Block) -> tuple[int, ...]:
    return tuple(start + n for start, n in zip(block.starts, block.lengths, strict=True))
