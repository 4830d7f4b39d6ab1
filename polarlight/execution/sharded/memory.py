"""Memory of one process in a sharded step, beside weights, gradients and state, from its schedule.

What a rule needs to compute a batch comes on top; it is bounded by `Batched.max_bytes`.
"""

from collections.abc import Iterable, Sequence

from polarlight.execution.sharded.schedule import (
    Bucket,
    Exchange,
    Fragment,
    ProcessSchedule,
    message_bytes,
)
from polarlight.execution.sharded.topology import Axes


def peak_bytes(schedule: ProcessSchedule) -> int:
    """Return the most bytes that messages and matrices of a step take at the same time.

    One bucket is computed while the next one is received and the one before is scattered.
    """
    buckets = schedule.buckets
    gather = [_in_flight(bucket.gather.values()) for bucket in buckets]
    scatter = [_in_flight(bucket.scatter.values()) for bucket in buckets]
    held = [_assembled_bytes(schedule, bucket) for bucket in buckets]
    found = [0]
    for k, bucket in enumerate(buckets):
        beside = sum(gather[k + 1 : k + 2])
        before = scatter[k - 1] + held[k - 1] if k else 0
        computing = max(gather[k], held[k]) + held[k]  # momenta, then directions beside them
        found.append(computing + beside + before)
        found.append(scatter[k] + held[k] + beside + _largest_rounds(bucket))
    return max(found)


def largest_bucket(schedule: ProcessSchedule) -> int:
    """Return the most bytes that a process sends or receives at once, over its buckets."""
    found = [0]
    for bucket in schedule.buckets:
        for exchange in (*bucket.gather.values(), *bucket.scatter.values()):
            found += [_bytes_of(exchange.outgoing.values()), _bytes_of(exchange.incoming.values())]
            found.append(sum(message_bytes([s for _, s in p]) for p in exchange.relayed.values()))
        found += [_bytes_of(b.fragments for b in broadcasts) for _, broadcasts in bucket.rounds]
    return max(found)


def messages(schedule: ProcessSchedule) -> int:
    """Return the number of messages that a process sends and receives in a step.

    In two hops these are messages to its node and column, each of which may carry several.
    """
    plan, total = schedule.plan, 0
    for bucket in schedule.buckets:
        for gather, exchanges in ((True, bucket.gather), (False, bucket.scatter)):
            for axes, exchange in exchanges.items():
                if plan.topology.grid_of(axes) is None:
                    total += len(exchange.outgoing) + len(exchange.incoming)
                else:
                    total += _hops(schedule, axes, exchange, gather)
        total += sum(len(broadcasts) for _, broadcasts in bucket.rounds)
    return total


def _hops(schedule: ProcessSchedule, axes: Axes, exchange: Exchange, gather: bool) -> int:
    """Return the number of messages of one process in both hops of an exchange."""
    rank, topology = schedule.rank, schedule.plan.topology
    pairs: set[tuple[str, int, int]] = set()
    ends = [(rank, to) for to in exchange.outgoing] + [(by, rank) for by in exchange.incoming]
    for by, to in (*ends, *exchange.relayed):
        via = topology.via(axes, *((by, to) if gather else (to, by)))
        pairs |= {("first", by, via), ("second", via, to)}
    return sum(by != to and rank in (by, to) for _, by, to in pairs)


def _in_flight(exchanges: Iterable[Exchange]) -> int:
    """Return the bytes in flight: per exchange its own messages, or twice the relayed if more."""
    total = 0
    for exchange in exchanges:
        ends = _bytes_of(exchange.outgoing.values()) + _bytes_of(exchange.incoming.values())
        passed = sum(message_bytes([s for _, s in p]) for p in exchange.relayed.values())
        total += max(ends, 2 * passed)
    return total


def _assembled_bytes(schedule: ProcessSchedule, bucket: Bucket) -> int:
    """Return the bytes of matrices and buffers that are assembled here, without directions."""
    kinds = schedule.plan.kinds
    return sum(kinds[n].nbytes for n in bucket.matrices if n not in bucket.local)


def _largest_rounds(bucket: Bucket) -> int:
    """Return the bytes of the two largest broadcast rounds in a row."""
    sizes = [_bytes_of(b.fragments for b in broadcasts) for _, broadcasts in bucket.rounds]
    return max((a + b for a, b in zip([0, *sizes], [*sizes, 0], strict=True)), default=0)


def _bytes_of(messages: Iterable[Sequence[Fragment]]) -> int:
    """Return the bytes of messages of fragments."""
    return sum(message_bytes([f.nbytes for f in fragments]) for fragments in messages)
