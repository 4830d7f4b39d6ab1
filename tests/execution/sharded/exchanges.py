"""Bytes of a process's exchanges, counted from the fragments of its schedule."""

from polarlight.execution.sharded.schedule import fragments_bytes, message_bytes


def largest_exchange_bytes(schedule):
    """Return the most bytes sent, received or passed on in any one exchange or round."""
    found = [0]
    for bucket in schedule.buckets:
        for exchange in (*bucket.gather.values(), *bucket.scatter.values()):
            found += [
                _bytes(exchange.outgoing.values()),
                _bytes(exchange.incoming.values()),
            ]
            found.append(sum(message_bytes([s for _, s in p]) for p in exchange.relayed.values()))
        found += [_bytes(b.fragments for b in broadcasts) for _, broadcasts in bucket.rounds]
    return max(found)


def _bytes(messages):
    return sum(map(fragments_bytes, messages))
