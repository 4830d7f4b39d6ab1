"""Memory of one process in a sharded step, beside weights, gradients and state, from its schedule.

What a rule needs to compute a batch comes on top; it is bounded by `Batched.max_bytes`.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from math import prod

from polarlight.execution.sharded.schedule import (
    Exchange,
    Fragment,
    ProcessSchedule,
    fragments_bytes,
    message_bytes,
)
from polarlight.execution.sharded.specs import MATRIX
from polarlight.execution.sharded.topology import MeshAxes

PREFETCH = 1
"""Number of buckets that are received while another one is computed."""


def peak_bytes(schedule: ProcessSchedule) -> int:
    """Return the peak bytes of messages and assembled matrices of a step on one process.

    One bucket is computed while the next one is received and the one before is scattered.
    """
    buckets = schedule.buckets
    gather = [_in_flight_bytes(bucket.gather.values()) for bucket in buckets]
    scatter = [_in_flight_bytes(bucket.scatter.values()) for bucket in buckets]
    nbytes = [kind.nbytes for kind in schedule.plan.kinds]
    held = [sum(nbytes[n] for n in b.matrices if n not in b.local) for b in buckets]  # assembled
    found = [0]
    for k, bucket in enumerate(buckets):
        beside = sum(gather[k + 1 : k + 2])
        before = scatter[k - 1] + held[k - 1] if k else 0
        computing = max(gather[k], held[k]) + held[k]  # momenta, then directions beside them
        found.append(computing + beside + before)
        rounds = [_total_bytes(b.fragments for b in broadcasts) for _, broadcasts in bucket.rounds]
        broadcast = max(map(sum, pairwise([0, *rounds, 0])))  # two rounds at a time
        found.append(scatter[k] + held[k] + beside + broadcast)
    return max(found)


def shard_bytes(schedule: ProcessSchedule, *, weights_last: bool = True) -> int:
    """Return the peak bytes of a process's momenta and directions; all of them if `weights_last`.

    Otherwise a momentum is formed when its bucket is sent, or its direction comes, and the
    direction is freed once it is applied. Momenta that are buffers or gradients themselves (no
    Nesterov step) have directions beside them, alive as long.
    """
    plan, where = schedule.plan, schedule.plan.coordinates[schedule.rank]
    sizes = [
        prod(spec.layouts[MATRIX].local_shape(where)) * spec.dtypes[MATRIX].itemsize
        for spec in plan.params
    ]
    if weights_last:
        return sum(sizes[n] for n in range(len(sizes)) if schedule.is_active(n))
    alive: set[int] = set()
    rowwise = [sizes[n] for n in schedule.rowwise]
    # A stack of row-wise parameters, beside the first buckets.
    peak = stack = min(sum(rowwise), max([plan.options.bucket_bytes, *rowwise]))
    for k, loaded, complete in _load_events(schedule):
        alive |= loaded
        peak = max(peak, sum(sizes[n] for n in alive) + (stack if k <= PREFETCH else 0))
        alive -= complete
    return peak


def _load_events(schedule: ProcessSchedule) -> Iterator[tuple[int, set[int], set[int]]]:
    """Yield (bucket number, parameters loaded, parameters complete) in the order of a step."""
    matrices, buckets, done = schedule.plan.matrices, schedule.buckets, schedule.completions

    def params_of(fragments: Iterable[Fragment]) -> set[int]:
        """Return the parameter numbers of fragments."""
        return {f.param for f in fragments}

    for k, bucket in enumerate(buckets):
        ahead = buckets[: PREFETCH + 1] if k == 0 else buckets[k + PREFETCH : k + PREFETCH + 1]
        sent = [m for b in ahead for e in b.gather.values() for m in e.outgoing.values()]
        own = {matrices[n].param for n in bucket.matrices}
        yield k, own.union(*map(params_of, sent)), set()
        # The scatter of a bucket ends one bucket later, that of the last one with it.
        last = len(buckets) - 1
        for j in [k - 1, k] if k == last else [k - 1]:
            if j < 0:
                continue
            received = [m for e in buckets[j].scatter.values() for m in e.incoming.values()]
            yield j, set().union(*map(params_of, received)), set(done.get((j, -1), ()))
            for r, (_, broadcasts) in enumerate(buckets[j].rounds):
                loaded = set().union(*(params_of(b.fragments) for b in broadcasts))
                yield j, loaded, set(done.get((j, r), ()))


def message_count(schedule: ProcessSchedule) -> int:
    """Return the number of messages that a process sends, plus those it receives, in a step.

    In two hops these are messages to its two hop groups, each of which may carry several.
    """
    plan, total = schedule.plan, 0
    for bucket in schedule.buckets:
        for gather, exchanges in ((True, bucket.gather), (False, bucket.scatter)):
            for replicated, exchange in exchanges.items():
                if plan.topology.grid_of(replicated) is None:
                    total += len(exchange.outgoing) + len(exchange.incoming)
                else:
                    total += _two_hop_messages(schedule, replicated, exchange, gather)
        total += sum(len(broadcasts) for _, broadcasts in bucket.rounds)
    return total


def _two_hop_messages(
    schedule: ProcessSchedule, replicated: MeshAxes, exchange: Exchange, gather: bool
) -> int:
    """Return the number of messages that a process sends or receives in a two-hop exchange."""
    rank, topology = schedule.rank, schedule.plan.topology
    pairs: set[tuple[str, int, int]] = set()
    ends = [(rank, to) for to in exchange.outgoing] + [(by, rank) for by in exchange.incoming]
    for by, to in (*ends, *exchange.relayed):
        via = topology.via(replicated, *((by, to) if gather else (to, by)))
        pairs |= {("first", by, via), ("second", via, to)}
    return sum(by != to and rank in (by, to) for _, by, to in pairs)


def _in_flight_bytes(exchanges: Iterable[Exchange]) -> int:
    """Return the sum over exchanges of max(bytes sent + received, 2 * bytes relayed)."""
    total = 0
    for exchange in exchanges:
        ends = _total_bytes(exchange.outgoing.values()) + _total_bytes(exchange.incoming.values())
        passed = sum(message_bytes([s for _, s in p]) for p in exchange.relayed.values())
        total += max(ends, 2 * passed)
    return total


def _total_bytes(messages: Iterable[Sequence[Fragment]]) -> int:
    """Return the bytes of several messages, each a list of fragments."""
    return sum(map(fragments_bytes, messages))
