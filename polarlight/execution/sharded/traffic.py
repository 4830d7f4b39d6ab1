"""Traffic of a plan: bytes and partners of every process in a step, counted without one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polarlight.execution.sharded.plan import ShardedPlan


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one process sends and receives in a step; local data is not counted.

    Attributes:
        sent: Bytes sent, those passed on for others included.
        received: Bytes received.
        at_once: Most bytes that it sends, receives or passes on in one exchange of one bucket.
        peers: Processes that it exchanges messages with; broadcasts between copies go to the next
            and come from the last one in a ring.
    """

    sent: float
    received: float
    at_once: int
    peers: frozenset[int]


def traffic(plan: ShardedPlan) -> list[Traffic]:
    """Return the `Traffic` of every rank in a step of the plan."""
    tally = _Tally(plan)
    for numbers in plan.buckets:
        tally.add_exchanges(numbers)
    for number in range(len(plan.matrices)):
        tally.add_broadcasts(number)
    for matrix in plan.shared:  # sums over the parts go round a ring of their owners
        ranks = matrix.ranks
        for k, (number, rank) in enumerate(zip(matrix.numbers, ranks, strict=True)):
            tally.sent[rank] += plan.kinds[number].sum_bytes
            tally.received[rank] += plan.kinds[number].sum_bytes
            tally.pairs.add((rank, ranks[(k + 1) % len(ranks)]))
    peers: list[set[int]] = [set() for _ in range(plan.size)]
    for here, there in tally.pairs:
        peers[here].add(there)
        peers[there].add(here)
    every = zip(tally.sent, tally.received, tally.at_once, map(frozenset, peers), strict=True)
    return [Traffic(*of_rank) for of_rank in every]


class _Tally:
    """Bytes sent and received by every process, and pairs of partners, added up over a plan."""

    def __init__(self, plan: ShardedPlan) -> None:
        """Start with the bytes of row-wise sums, which every process sends and receives."""
        sums = sum(rowwise.sent for rowwise in plan.rowwise.values())
        self.plan = plan
        self.sent, self.received = [float(sums)] * plan.size, [float(sums)] * plan.size
        self.at_once = [0] * plan.size
        self.pairs: set[tuple[int, int]] = set()

    def add_exchanges(self, matrix_numbers: Sequence[int]) -> None:
        """Add the bytes of gathering and scattering the matrices of one bucket, within copies."""
        size, plan = self.plan.size, self.plan
        flows = [[0] * size for _ in range(6)]
        gathered_out, gathered_in, gathered_on, scattered_out, scattered_in, scattered_on = flows
        for number in matrix_numbers:
            owner, replicated = plan.owners[number], plan.replicated_of(number)
            topology = plan.topology
            two_hops = topology.grid_of(replicated) is not None
            places, group = topology.places(replicated), topology.cut_group(replicated, owner)
            place = places[owner][1]
            for rank, gathered, scattered in bytes_by_holder(plan, number):
                gathered_out[rank] += gathered
                gathered_in[owner] += gathered
                scattered_out[owner] += scattered
                scattered_in[rank] += scattered
                if not two_hops:
                    self._add_hop(rank, owner, gathered, scattered)
                    continue
                via = group[places[rank][0] + place]
                gathered_on[via] += gathered
                scattered_on[via] += scattered
                if via != rank:
                    self._add_hop(rank, via, gathered, scattered)
                if via != owner:
                    self._add_hop(via, owner, gathered, scattered)
        self.at_once = list(map(max, self.at_once, *flows))

    def _add_hop(self, here: int, there: int, forth: int, back: int) -> None:
        """Add `forth` bytes sent from `here` to `there`, `back` bytes in return, and the pair."""
        self.sent[here] += forth
        self.received[there] += forth
        self.sent[there] += back
        self.received[here] += back
        self.pairs.add((here, there))

    def add_broadcasts(self, matrix_number: int) -> None:
        """Add bytes and pairs of a matrix's broadcasts between copies (rings), if there are any."""
        kind, owner = self.plan.kinds[matrix_number], self.plan.owners[matrix_number]
        if not kind.replicated:
            return
        for source, (_, amount) in kind.shares(owner).items():
            group = self.plan.topology.copies(kind.replicated, source)
            for k, rank in enumerate(group):
                self.sent[rank] += amount * (len(group) - 1) / len(group)
                if rank != source:
                    self.received[rank] += amount
                self.pairs.add((rank, group[(k + 1) % len(group)]))


def bytes_by_holder(plan: ShardedPlan, matrix_number: int) -> Iterator[tuple[int, int, int]]:
    """Yield (rank, bytes to owner, bytes back) of senders and receivers; a rank may come twice."""
    kind, owner = plan.kinds[matrix_number], plan.owners[matrix_number]
    gathers, scatters = plan.gathered[matrix_number], plan.returned[matrix_number]
    if not scatters:  # then nothing is gathered either
        return
    for rank, (gathered, scattered) in kind.shares(owner).items():
        if rank != owner and (scattered or (gathers and gathered)):
            yield rank, gathered if gathers else 0, scattered
    if gathers:
        for rank, amount in kind.extra_gathered(owner):
            yield rank, amount, 0
