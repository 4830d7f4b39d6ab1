"""Exchanges of fragments between processes: one message of bytes per pair, in one hop or two.

In two hops a message to an owner goes to the owner's place in the sender's own group first, and
from there to the owner's group; results take the same way back. A process then exchanges messages
with its two hop groups only (`Topology`), and all messages on the same way travel as one.
"""

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from polarlight.execution.sharded import collectives
from polarlight.execution.sharded.collectives import (
    InFlight,
    ProcessMesh,
    SharedRows,
    Subgroup,
)
from polarlight.execution.sharded.plan import ShardedPlan
from polarlight.execution.sharded.routes import (
    ExchangeRoute,
    TensorsOf,
    direct_route,
    relayed_route,
)
from polarlight.execution.sharded.schedule import (
    ALIGNMENT,
    Broadcast,
    Exchange,
    fragments_bytes,
)
from polarlight.execution.sharded.topology import MeshAxes
from polarlight.linalg import foreach


class Groups:
    """Process groups of a plan's exchanges, made when they are first needed."""

    def __init__(self, mesh: ProcessMesh, plan: ShardedPlan) -> None:
        """Keep mesh and plan; no process group is made yet."""
        self.mesh, self.plan = mesh, plan
        self._known: dict[tuple[int, ...], Subgroup] = {}
        self._routes: WeakKeyDictionary[Exchange, ExchangeRoute] = WeakKeyDictionary()

    def copies(self, replicated: MeshAxes) -> Subgroup:
        """Return the group of processes with this one's shard, one per copy; made on first use."""
        return self._subgroup(self.plan.topology.copies(replicated, self.mesh.rank))

    def shared_lines(self, mesh_ranks: tuple[int, ...], total: int) -> SharedRows:
        """Return reductions over `total` rows, or columns, that `mesh_ranks` hold in parts."""
        group = self._subgroup(mesh_ranks).group
        return SharedRows((group,), total, self.mesh.device)

    def hops(self, replicated: MeshAxes, *, gather: bool) -> list[Subgroup]:
        """Return the group of each hop (one or two), in the order of a gather or of a scatter."""
        topology, rank = self.plan.topology, self.mesh.rank
        if topology.grid_of(replicated) is None:
            return [self._subgroup(topology.cut_group(replicated, rank))]
        # To an owner its place within the own group comes first, from an owner the other group.
        both = [
            self._subgroup(topology.first_hop_group(replicated, rank)),
            self._subgroup(topology.second_hop_group(replicated, rank)),
        ]
        return both if gather else both[::-1]

    def route(self, replicated: MeshAxes, exchange: Exchange, *, gather: bool) -> ExchangeRoute:
        """Return the route of an exchange: its packing and hops, made on first use and cached."""
        if exchange not in self._routes:
            first, *more = (hop.mesh_ranks for hop in self.hops(replicated, gather=gather))
            self._routes[exchange] = (
                relayed_route(
                    exchange,
                    self.plan.topology,
                    replicated,
                    self.mesh.rank,
                    (first, more[0]),
                    gather=gather,
                )
                if more
                else direct_route(exchange, first, gather=gather)
            )
        return self._routes[exchange]

    def _subgroup(self, mesh_ranks: tuple[int, ...]) -> Subgroup:
        """Return the `Subgroup` of these mesh ranks; all of them must call this the first time."""
        if mesh_ranks not in self._known:
            self._known[mesh_ranks] = collectives.subgroup(self.mesh, mesh_ranks)
        return self._known[mesh_ranks]


class Transfer:
    """One exchange that has been started: all-to-alls of one or two hops.

    Args:
        groups: Process groups.
        replicated: Replicated mesh dimensions of the parameters.
        exchange: The messages.
        tensors_of: Returns the local tensor of each outgoing fragment.
        gather: Whether messages go to owners; they come from them otherwise.
    """

    def __init__(
        self,
        groups: Groups,
        replicated: MeshAxes,
        exchange: Exchange,
        tensors_of: TensorsOf,
        *,
        gather: bool,
    ) -> None:
        """Pack the outgoing fragments and start to send them; if in two hops, the first one."""
        self._route = groups.route(replicated, exchange, gather=gather)
        self._left = list(
            zip(self._route.hops, groups.hops(replicated, gather=gather), strict=True)
        )
        self._start(self._route.sent.pack(tensors_of, groups.mesh.device))

    def _start(self, sent: Tensor) -> None:
        """Start the all-to-all of the next hop: send these bytes, receive into its message."""
        hop, group = self._left.pop(0)
        arrived = self._left[0][0].arrived if self._left else self._route.received.message
        assert arrived is not None, "the first of two hops brings what is sent on"
        received, _ = arrived.allocate_on(sent.device)
        self._in_flight: InFlight = collectives.start_exchange(
            sent, received, hop.outgoing, hop.incoming, group.group
        )

    def _wait(self) -> Tensor:
        """Wait for a hop; free the message that this process sent; return the received bytes."""
        received = self._in_flight.wait()
        self._route.sent.message.free()
        return received

    def advance(self) -> None:
        """Wait for the first of two hops and start the second; do nothing otherwise."""
        if self._left and (arrived := self._left[0][0].arrived) is not None:
            received = self._wait()
            _, passed = arrived.allocate_on(received.device)
            self._start(torch.cat(passed) if passed else received)
            arrived.free()

    def finish(self, tensors_of: TensorsOf) -> None:
        """Wait for the remaining hops; copy what arrived into the tensors of its fragments."""
        self.advance()
        self._route.received.unpack(self._wait(), tensors_of)


def run_rounds(
    groups: Groups,
    rounds: Sequence[tuple[MeshAxes, list[Broadcast]]],
    views_of: TensorsOf,
    finished: Callable[[int], None],
) -> None:
    """Run rounds of broadcasts between copies; unpack each, then call `finished(round number)`."""
    before: list[tuple[Broadcast, Tensor, object]] = []
    for number, (replicated, broadcasts) in enumerate(rounds):
        started = _start_round(groups, replicated, broadcasts, views_of)
        if number:
            _finish_round(before, groups.mesh.rank, views_of)
            finished(number - 1)
        before = started
    if rounds:
        _finish_round(before, groups.mesh.rank, views_of)
        finished(len(rounds) - 1)


def _start_round(
    groups: Groups, replicated: MeshAxes, broadcasts: Sequence[Broadcast], views_of: TensorsOf
) -> list[tuple[Broadcast, Tensor, object]]:
    """Start one round's broadcasts; return (broadcast, its bytes, handle to wait for) of each."""
    mesh, group = groups.mesh, groups.copies(replicated).group
    started = []
    for broadcast in broadcasts:
        if not broadcast.fragments:
            continue
        if broadcast.source == mesh.rank:
            message = pack(views_of(broadcast.fragments), mesh.device)
        else:
            size = fragments_bytes(broadcast.fragments)
            message = torch.empty(size, dtype=torch.uint8, device=mesh.device)
        handle = collectives.start_broadcast(message, mesh.ranks[broadcast.source], group)
        started.append((broadcast, message, handle))
    return started


def _finish_round(
    started: Iterable[tuple[Broadcast, Tensor, object]], rank: int, views_of: TensorsOf
) -> None:
    """Wait for broadcasts; copy what other processes sent into the tensors of its fragments."""
    for broadcast, message, handle in started:
        handle.wait()  # type: ignore[attr-defined]
        if broadcast.source != rank:
            unpack(message, views_of(broadcast.fragments))


def pack(tensors: Sequence[Tensor], device: torch.device | str) -> Tensor:
    """Return the bytes of tensors, concatenated and padded to `ALIGNMENT`, uint8 on a device.

    Tensors of one other device, as those that FSDP2 keeps in host memory, are moved as one.
    """
    if len({x.device for x in tensors}) > 1:
        tensors = [x.to(device, non_blocking=True) for x in tensors]
    parts = [x.reshape(-1).contiguous().view(torch.uint8) for x in tensors if x.numel()]
    if fill := -sum(map(len, parts)) % ALIGNMENT:
        parts.append(parts[0].new_zeros(fill))
    message = parts[0] if len(parts) == 1 else torch.cat(parts)
    return message.to(device, non_blocking=True)


def unpack(message: Tensor, targets: Sequence[Tensor]) -> None:
    """Copy the tensors packed in a message, in order, to targets, moved to their device at once."""
    if len(devices := {x.device for x in targets}) == 1:
        message = message.to(devices.pop())
    foreach.copy_(targets, _split_like(message, targets))


def moved_as_one(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Return tensors on a device, moved in one transfer; one already there may be aliased."""
    order = sorted(range(len(tensors)), key=lambda k: -tensors[k].element_size())
    wide_first = [tensors[k] for k in order]
    parts = _split_like(pack(wide_first, device), wide_first)
    return [part for _, part in sorted(zip(order, parts, strict=True), key=itemgetter(0))]


def _split_like(message_bytes: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return the bytes as views like `like`, one after the other; `like` has wide dtypes first."""
    sizes = [x.numel() * x.element_size() for x in like]
    parts = message_bytes.split([*sizes, len(message_bytes) - sum(sizes)])
    return [part.view(x.dtype).view(x.shape) for part, x in zip(parts, like, strict=False)]
