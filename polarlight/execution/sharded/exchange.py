"""Exchanges of fragments between processes: one message of bytes per pair, in one hop or two.

In two hops a message goes to the process at its destination's place in the own node first, and
from there across nodes; results take the same way back. A process then exchanges messages with its
node and its column of nodes only, and all messages on the same way travel as one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter

import torch
from torch import Tensor

from polarlight.execution.sharded import collectives
from polarlight.execution.sharded.collectives import Pending, ProcessMesh, Subgroup
from polarlight.execution.sharded.plan import ShardedPlan
from polarlight.execution.sharded.schedule import (
    ALIGNMENT,
    Broadcast,
    Exchange,
    Fragment,
    message_bytes,
)
from polarlight.execution.sharded.topology import Axes
from polarlight.linalg import foreach

View = Callable[[Fragment], Tensor]
"""Fragment -> the part of a local tensor that it is copied from or to."""

Sizes = Mapping[tuple[int, int], int]
"""Bytes of messages by (source, destination)."""


class Groups:
    """Process groups of a plan's exchanges, made when they are first needed."""

    def __init__(self, mesh: ProcessMesh, plan: ShardedPlan) -> None:
        self.mesh, self.plan = mesh, plan
        self._known: dict[tuple[int, ...], Subgroup] = {}

    def cut(self, axes: Axes) -> Subgroup:
        """Return the processes that hold this process's copy of what `axes` replicate."""
        return self._of(self.plan.topology.cut_group(axes, self.mesh.rank))

    def node(self, axes: Axes) -> Subgroup:
        """Return the processes of this copy that are in this process's node."""
        return self._of(self.plan.topology.node(axes, self.mesh.rank))

    def column(self, axes: Axes) -> Subgroup:
        """Return the processes of this copy at this process's place of every node."""
        return self._of(self.plan.topology.column(axes, self.mesh.rank))

    def copies(self, axes: Axes) -> Subgroup:
        """Return the processes with this process's shard, one per copy."""
        return self._of(self.plan.topology.copies(axes, self.mesh.rank))

    def _of(self, members: tuple[int, ...]) -> Subgroup:
        """Return the subgroup of these ranks, made once."""
        if members not in self._known:
            self._known[members] = collectives.subgroup(self.mesh, members)
        return self._known[members]


class Transfer:
    """One exchange under way.

    Args:
        groups: Process groups.
        axes: Replicated mesh dimensions of the parameters.
        exchange: The messages.
        view: Where an outgoing fragment is.
        gather: Whether messages go to owners; they come from them otherwise.
    """

    def __init__(
        self, groups: Groups, axes: Axes, exchange: Exchange, view: View, *, gather: bool
    ) -> None:
        """Pack the outgoing fragments and start to send them; if in two hops, the first one."""
        self._exchange, self._rank = exchange, groups.mesh.rank
        device = groups.mesh.device
        messages = {
            rank: pack([view(f) for f in fragments], device)
            for rank, fragments in exchange.outgoing.items()
            if fragments
        }
        self._second: Subgroup | None = None
        sizes = self._own_sizes()
        if groups.plan.topology.grid_of(axes) is None:
            self._start(groups.cut(axes), sizes, messages, device)
            return
        # Owners have places in columns: to them within the node first, from them across nodes.
        first, self._second = groups.node(axes), groups.column(axes)
        self._relayed = {
            pair: message_bytes([size for _, size in parts])
            for pair, parts in exchange.relayed.items()
        }
        if not gather:
            first, self._second = self._second, first
        self._relay = _Relay(groups.plan, axes, self._rank, gather)
        self._start(first, *self._relay.first_hop(sizes, self._relayed, messages), device)

    def _own_sizes(self) -> dict[tuple[int, int], int]:
        """Return the bytes of this process's messages by (sender, receiver)."""
        exchange, rank = self._exchange, self._rank
        sizes = {(rank, to): _bytes_of(fragments) for to, fragments in exchange.outgoing.items()}
        sizes |= {(by, rank): _bytes_of(fragments) for by, fragments in exchange.incoming.items()}
        return sizes

    def _start(
        self, group: Subgroup, sizes: Sizes, messages: Mapping[int, Tensor], device: str
    ) -> None:
        """Start an all-to-all of messages within a group."""
        rank, self._group, self._sizes = self._rank, group, sizes
        parts = [messages[to] for to in group.members if to in messages]
        sent = torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8, device=device)
        outgoing = [sizes.get((rank, to), 0) for to in group.members]
        incoming = [sizes.get((by, rank), 0) for by in group.members]
        self._pending: Pending = collectives.start_exchange(sent, outgoing, incoming, group.group)

    def _arrived(self) -> dict[int, Tensor]:
        """Wait for the exchange within a group; return the messages by their sender."""
        received = self._pending.wait()
        counts = [self._sizes.get((by, self._rank), 0) for by in self._group.members]
        parts = zip(self._group.members, received.split(counts), strict=True)
        return {by: message for by, message in parts if len(message)}

    def advance(self) -> None:
        """Start the second hop of a two-level exchange, if there is one to start."""
        if self._second is not None:
            group, self._second = self._second, None
            device = str(self._pending.received.device)
            hop = self._relay.second_hop(self._own_sizes(), self._relayed, self._arrived())
            self._start(group, *hop, device)
            self._two = True

    _two = False

    def finish(self, view: View) -> None:
        """Wait for all messages and copy their fragments to where they belong."""
        self.advance()
        arrived = self._arrived()
        if self._two:
            arrived = self._relay.by_source(self._own_sizes(), arrived)
        for by, message in arrived.items():
            unpack(message, self._exchange.incoming[by], view)


class _Relay:
    """Rearranges messages at this process between the two hops of an exchange.

    Messages of a hop are concatenated in the order of their final destinations, then sources.
    """

    def __init__(self, plan: ShardedPlan, axes: Axes, rank: int, gather: bool) -> None:
        self._topology, self._axes, self._rank, self._gather = plan.topology, axes, rank, gather

    def via(self, source: int, destination: int) -> int:
        """Return the process that passes a message on."""
        peer, owner = (source, destination) if self._gather else (destination, source)
        return self._topology.via(self._axes, peer, owner)

    def first_hop(
        self, own: Sizes, relayed: Sizes, messages: Mapping[int, Tensor]
    ) -> tuple[dict[tuple[int, int], int], dict[int, Tensor]]:
        """Return sizes and contents of the messages to the processes that pass them on."""
        rank, sizes = self._rank, dict[tuple[int, int], int]()
        parts: dict[int, list[Tensor]] = {}
        for to in sorted(messages):
            parts.setdefault(self.via(rank, to), []).append(messages[to])
        for (by, to), size in own.items():
            if by == rank:
                _add(sizes, (rank, self.via(rank, to)), size)
        for (by, _), size in relayed.items():
            if by != rank:
                _add(sizes, (by, rank), size)
        kept = sum(size for (by, _), size in relayed.items() if by == rank)
        if kept:
            sizes[rank, rank] = kept  # passed on by this process itself
        return sizes, {to: torch.cat(some) for to, some in parts.items()}

    def second_hop(
        self, own: Sizes, relayed: Sizes, arrived: Mapping[int, Tensor]
    ) -> tuple[dict[tuple[int, int], int], dict[int, Tensor]]:
        """Return sizes and contents of the messages to their destinations."""
        rank, sizes = self._rank, dict[tuple[int, int], int]()
        parts: dict[int, dict[int, Tensor]] = {}
        destinations: dict[int, list[int]] = {}
        for by, to in sorted(relayed):
            destinations.setdefault(by, []).append(to)
        for by, message in arrived.items():
            toward = destinations[by]
            counts = [relayed[by, to] for to in toward]
            for to, part in zip(toward, message.split(counts), strict=True):
                parts.setdefault(to, {})[by] = part
        for (_, to), size in relayed.items():
            _add(sizes, (rank, to), size)
        for (by, to), size in own.items():
            if to == rank:
                via = self.via(by, rank)
                if via != rank:
                    _add(sizes, (via, rank), size)
        contents = {to: torch.cat([some[by] for by in sorted(some)]) for to, some in parts.items()}
        return sizes, contents

    def by_source(self, own: Sizes, arrived: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return the messages that arrived over the processes that passed them on, by source."""
        over: dict[int, list[int]] = {}
        for by, to in sorted(own):
            if to == self._rank and own[by, to]:
                over.setdefault(self.via(by, to), []).append(by)
        found: dict[int, Tensor] = {}
        for via, sources in over.items():
            counts = [own[by, self._rank] for by in sources]
            found.update(zip(sources, arrived[via].split(counts), strict=True))
        return found


def _add(sizes: dict[tuple[int, int], int], pair: tuple[int, int], size: int) -> None:
    """Add `size` bytes to the message of a (sender, receiver) pair."""
    sizes[pair] = sizes.get(pair, 0) + size


def run_rounds(
    groups: Groups,
    rounds: Sequence[tuple[Axes, list[Broadcast]]],
    view: View,
    finished: Callable[[int], None],
) -> None:
    """Broadcast directions between copies; the next round is under way while one is unpacked.

    `finished` is called with the number of each round after it.
    """
    before: list[tuple[Broadcast, Tensor, object]] = []
    for number, (axes, broadcasts) in enumerate(rounds):
        started = _start_round(groups, axes, broadcasts, view)
        if number:
            _finish_round(before, groups.mesh.rank, view)
            finished(number - 1)
        before = started
    if rounds:
        _finish_round(before, groups.mesh.rank, view)
        finished(len(rounds) - 1)


def _start_round(
    groups: Groups, axes: Axes, broadcasts: Sequence[Broadcast], view: View
) -> list[tuple[Broadcast, Tensor, object]]:
    """Start the broadcasts of one round; return each with its packed message and handle."""
    mesh, group = groups.mesh, groups.copies(axes).group
    started = []
    for broadcast in broadcasts:
        if not broadcast.fragments:
            continue
        if broadcast.source == mesh.rank:
            message = pack([view(f) for f in broadcast.fragments], mesh.device)
        else:
            size = _bytes_of(broadcast.fragments)
            message = torch.empty(size, dtype=torch.uint8, device=mesh.device)
        handle = collectives.start_broadcast(message, mesh.ranks[broadcast.source], group)
        started.append((broadcast, message, handle))
    return started


def _finish_round(
    started: Iterable[tuple[Broadcast, Tensor, object]], rank: int, view: View
) -> None:
    """Wait for broadcasts and copy what other processes sent."""
    for broadcast, message, handle in started:
        handle.wait()  # type: ignore[attr-defined]
        if broadcast.source != rank:
            unpack(message, broadcast.fragments, view)


def pack(tensors: Sequence[Tensor], device: torch.device | str) -> Tensor:
    """Return the bytes of all tensors joined, zeros at the end to a multiple of `ALIGNMENT`.

    Tensors of one other device, as those that FSDP2 keeps in host memory, are moved as one.
    """
    if len({x.device for x in tensors}) > 1:
        tensors = [x.to(device, non_blocking=True) for x in tensors]
    parts = [x.reshape(-1).contiguous().view(torch.uint8) for x in tensors if x.numel()]
    if fill := -sum(map(len, parts)) % ALIGNMENT:
        parts.append(parts[0].new_zeros(fill))
    message = parts[0] if len(parts) == 1 else torch.cat(parts)
    return message.to(device, non_blocking=True)


def unpack(message: Tensor, fragments: Sequence[Fragment], view: View) -> None:
    """Copy the fragments of a message into their places; to another device as one."""
    targets = [view(f) for f in fragments]
    if len(devices := {x.device for x in targets}) == 1:
        message = message.to(devices.pop())
    foreach.copy_(targets, _parts(message, targets))


def moved(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Return copies of tensors on a device, moved as one."""
    order = sorted(range(len(tensors)), key=lambda k: -tensors[k].element_size())
    wide_first = [tensors[k] for k in order]
    parts = _parts(pack(wide_first, device), wide_first)
    return [part for _, part in sorted(zip(order, parts, strict=True), key=itemgetter(0))]


def _parts(message: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors that were packed, as views of the message; wide entries come first."""
    sizes = [x.numel() * x.element_size() for x in like]
    parts = message.split([*sizes, len(message) - sum(sizes)])
    return [part.view(x.dtype).view(x.shape) for part, x in zip(parts, like, strict=False)]


def _bytes_of(fragments: Sequence[Fragment]) -> int:
    """Return the bytes of a message with these fragments."""
    return message_bytes([f.nbytes for f in fragments])
