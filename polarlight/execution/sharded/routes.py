"""Routes: sizes, order and copies of an exchange's messages, found once and used in every step.

An owner on thousands of processes receives thousands of messages. Fragments that lie at equal
distances in the received bytes and side by side in a matrix are copied together.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from polarlight.execution.sharded.schedule import (
    Exchange,
    Fragment,
    Messages,
    fragments_bytes,
    message_bytes,
)
from polarlight.execution.sharded.topology import MeshAxes, Topology
from polarlight.linalg import foreach

TensorsOf = Callable[[Sequence[Fragment]], list[Tensor]]
"""Fragments -> the whole local tensor that each is copied from or to."""


StridedView = tuple[tuple[int, ...], tuple[int, ...], int]
"""Shape, strides and first entry of a view of a tensor."""


@dataclass(frozen=True, slots=True)
class FragmentRun:
    """Fragments of one tensor that are copied together.

    Attributes:
        fragment: All of them as one.
        shape: Shape of each.
        dim: Dimension of the tensor along which they lie side by side; None if all are the same
            part of it, sent to several processes.
        offset: First byte of the first one in the message.
        count: Number of fragments.
        stride: Bytes from one to the next in the message.
    """

    fragment: Fragment
    shape: tuple[int, ...]
    dim: int | None
    offset: int
    count: int
    stride: int

    @property
    def shape_in_message(self) -> tuple[int, ...]:
        """Shape of the fragments in the message: [count, *shape], or `shape` of a single one."""
        return self.shape if self.count == 1 else (self.count, *self.shape)

    @property
    def strides_in_message(self) -> tuple[int, ...]:
        """Strides in the message, in entries, for `shape_in_message`."""
        strides = (prod(self.shape[dim + 1 :]) for dim in range(len(self.shape)))
        more = () if self.count == 1 else (self.stride // self.fragment.itemsize,)
        return (*more, *strides)

    def view_in(self, strides: Sequence[int], of_blocks: bool) -> StridedView:
        """Return (shape, strides, first entry) of the run as a view of a tensor with these strides.

        The shape is `shape_in_message`; entries are counted from the tensor's first one.
        """
        slices = _slices(self.fragment, of_blocks)
        first = sum(s.start * stride for s, stride in zip(slices, strides, strict=True))
        own = [stride * (s.step or 1) for s, stride in zip(slices, strides, strict=True)]
        if self.count > 1:
            between = 0 if self.dim is None else own[self.dim] * self.shape[self.dim]
            own = [between, *own]
        return self.shape_in_message, tuple(own), first


class Message:
    """Bytes that are sent or received in every step, with views of them.

    The views are made once: to make a view takes as long as to copy a small fragment. The memory
    is there from `allocate_on` until `free` only.

    Args:
        size: Number of bytes.
        views_of: Returns the views of the bytes, uint8 [size].
    """

    def __init__(self, size: int, views_of: Callable[[Tensor], list[Tensor]]) -> None:
        """Keep the arguments; the views are made when the device is known."""
        self._size, self._views_of = size, views_of
        self._kept: dict[torch.device, tuple[Tensor, list[Tensor]]] = {}

    def allocate_on(self, device: torch.device) -> tuple[Tensor, list[Tensor]]:
        """Return (bytes on a device, their views); allocate the bytes, uninitialized, if freed."""
        if device not in self._kept:
            with torch.inference_mode(False):  # later steps write to them, in any mode
                message = torch.empty(self._size, dtype=torch.uint8, device=device)
                self._kept[device] = message, self._views_of(message)
        self._kept[device][0].untyped_storage().resize_(self._size)
        return self._kept[device]

    def free(self) -> None:
        """Free the memory of the bytes; the views stay, for the next `allocate_on`."""
        for message, _ in self._kept.values():
            message.untyped_storage().resize_(0)


class Packing:
    """Runs of one message, with their places in it.

    Args:
        runs: The runs.
        size: Bytes of the message.
        of_blocks: Whether they are parts of whole matrices; of shards otherwise.
    """

    def __init__(self, runs: Sequence[FragmentRun], size: int, *, of_blocks: bool) -> None:
        """Keep the runs; make the message, without memory."""
        self.runs, self.message = runs, Message(size, self._message_views)
        self._fragments, self._of_blocks = [run.fragment for run in runs], of_blocks
        # Runs that are not all of a tensor, by position, and their places in one of such strides.
        whole = [not of_blocks and run.count == 1 and run.fragment.segment.whole for run in runs]
        self._parts = [k for k, is_whole in enumerate(whole) if not is_whole]
        self._places: dict[int, tuple[tuple[int, ...], StridedView]] = {}

    def pack(self, tensors_of: TensorsOf, device: str) -> Tensor:
        """Copy all fragments from their tensors into the message; return it on `device`."""
        tensors = tensors_of(self._fragments)
        message, views = self.message.allocate_on(
            tensors[0].device if tensors else torch.device(device)
        )
        self._copy(views, self._tensor_views(tensors))
        if message.device.type == torch.device(device).type:
            return message
        moved = message.to(device)
        self.message.free()
        return moved

    def unpack(self, received: Tensor, tensors_of: TensorsOf) -> None:
        """Copy received bytes to tensors_of(all fragments), in their order; free the message."""
        if tensors := tensors_of(self._fragments):
            message, views = self.message.allocate_on(tensors[0].device)
            if message is not received:  # in one transfer, if on another device
                message.copy_(received)
            self._copy(self._tensor_views(tensors), views)
        self.message.free()

    def _message_views(self, message: Tensor) -> list[Tensor]:
        """Return one view of the message per run, in the dtype of its fragment."""
        typed = {f.dtype: message.view(f.dtype) for f in self._fragments}
        return [
            typed[f.dtype].as_strided(
                run.shape_in_message, run.strides_in_message, run.offset // f.itemsize
            )
            for run, f in zip(self.runs, self._fragments, strict=True)
        ]

    def _tensor_views(self, tensors: list[Tensor]) -> list[Tensor]:
        """Replace each of `tensors` by a view of its run (unless all of it); return the list."""
        for k in self._parts:
            x = tensors[k]
            strides, place = self._places.get(k, ((), None))
            if place is None or strides != x.stride():
                strides, place = x.stride(), self.runs[k].view_in(x.stride(), self._of_blocks)
                self._places[k] = strides, place
            shape, own_strides, first = place  # one view: faster than slices
            tensors[k] = x.as_strided(shape, own_strides, x.storage_offset() + first)
        return tensors

    @staticmethod
    def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
        """Copy sources to targets of equal shapes in one call; do nothing if there are none."""
        if targets:
            foreach.copy_(targets, sources)


def runs_of(placed: Iterable[tuple[Fragment, int]], *, of_blocks: bool) -> list[FragmentRun]:
    """Join (fragment, first byte) pairs that lie at equal distances into runs, each copied as one.

    Args:
        placed: The fragments.
        of_blocks: Whether they are parts of whole matrices; of shards otherwise.
    """
    by_tensor: dict[tuple[int, str], list[tuple[list[int], Fragment, int]]] = {}
    for fragment, offset in placed:
        starts = [s.start for s in _slices(fragment, of_blocks)]
        of_tensor = by_tensor.setdefault(
            (fragment.matrix if of_blocks else fragment.param, fragment.name), []
        )
        of_tensor.append((starts, fragment, offset))
    runs: list[FragmentRun] = []
    for of_tensor in by_tensor.values():
        first = len(runs)
        for _, fragment, offset in sorted(of_tensor, key=lambda entry: entry[0]):
            longer = _extended_run(runs[-1], fragment, offset, of_blocks) if runs[first:] else None
            if longer is not None:
                runs[-1] = longer
            else:
                runs.append(FragmentRun(fragment, fragment.segment.shape, None, offset, 1, 0))
    return runs


def _slices(fragment: Fragment, of_blocks: bool) -> tuple[slice, ...]:
    """Return a fragment's slices of the matrix's block if `of_blocks`, else of the shard."""
    return fragment.segment.of_block if of_blocks else fragment.segment.of_shard


def _extended_run(
    run: FragmentRun, fragment: Fragment, offset: int, of_blocks: bool
) -> FragmentRun | None:
    """Return the run extended by a fragment; None unless it is next in tensor and message."""
    before, here = _slices(run.fragment, of_blocks), _slices(fragment, of_blocks)
    if fragment.segment.shape != run.shape:
        return None
    differing = [dim for dim, (a, b) in enumerate(zip(before, here, strict=True)) if a != b]
    dim = differing[0] if differing else None
    stride = offset - run.offset if run.count == 1 else run.stride
    fits = offset == run.offset + run.count * stride and stride > 0
    if not fits or stride % fragment.itemsize or len(differing) > 1:
        return None
    if run.count > 1 and dim != run.dim:
        return None
    count, joined = run.count + 1, run.fragment
    if dim is not None:
        if here[dim].start != before[dim].stop or (here[dim].step or 1) != 1:
            return None
        slices = list(before)
        slices[dim] = slice(before[dim].start, here[dim].stop, before[dim].step)
        shape = tuple(n * count if d == dim else n for d, n in enumerate(run.shape))
        segment = replace(joined.segment, shape=shape)
        segment = (
            replace(segment, of_block=tuple(slices))
            if of_blocks
            else replace(segment, of_shard=tuple(slices))
        )
        joined = replace(joined, segment=segment)
    return FragmentRun(joined, run.shape, dim, run.offset, count, stride)


@dataclass(frozen=True, slots=True)
class Hop:
    """One all-to-all within a group.

    Attributes:
        outgoing: Bytes to each process of the group.
        incoming: Bytes from each process of the group.
        arrived: For the second of two hops what the first one brought, with a view of each part
            that is sent on, in the order of this hop.
    """

    outgoing: list[int]
    incoming: list[int]
    arrived: Message | None = None


@dataclass(frozen=True, slots=True)
class ExchangeRoute:
    """Way of one exchange's messages from and to this process.

    Attributes:
        sent: Outgoing fragments in the bytes that are sent first.
        received: Incoming fragments in the bytes that arrive last.
        hops: One all-to-all, or one in each of the two hop groups.
    """

    sent: Packing
    received: Packing
    hops: list[Hop]


def direct_route(exchange: Exchange, group: Sequence[int], *, gather: bool) -> ExchangeRoute:
    """Return the packing and all-to-all of an exchange in one hop among the mesh ranks `group`."""
    outgoing, incoming = _message_sizes(exchange.outgoing), _message_sizes(exchange.incoming)
    hop = Hop([outgoing.get(m, 0) for m in group], [incoming.get(m, 0) for m in group])
    return _route_of(exchange, group, group, [hop], gather)


def relayed_route(
    exchange: Exchange,
    topology: Topology,
    replicated: MeshAxes,
    rank: int,
    groups: tuple[Sequence[int], Sequence[int]],
    *,
    gather: bool,
) -> ExchangeRoute:
    """Return the packing and both all-to-alls of an exchange in two hops, over relays.

    Messages of a hop are concatenated in the order of their final destinations, then sources.

    Args:
        exchange: The exchange.
        topology: Groups of processes.
        replicated: Replicated mesh dimensions of its parameters.
        rank: This process.
        groups: Ranks of the groups of the first and of the second hop, in their order.
        gather: Whether messages go to owners; they come from them otherwise.
    """

    def via(source: int, destination: int) -> int:
        """Return the rank that relays a message from source to destination."""
        peer, owner = (source, destination) if gather else (destination, source)
        return topology.via(replicated, peer, owner)

    outgoing, incoming = _message_sizes(exchange.outgoing), _message_sizes(exchange.incoming)
    passed = {p: message_bytes([n for _, n in parts]) for p, parts in exchange.relayed.items()}
    passed = {pair: size for pair, size in passed.items() if size}
    over_out, over_in = (
        _grouped_by_relay(outgoing, lambda to: via(rank, to)),
        _grouped_by_relay(incoming, lambda by: via(by, rank)),
    )
    first, second = groups
    arrived: dict[int, int] = defaultdict(int)  # bytes from each process of the first group
    left: dict[int, int] = defaultdict(int)  # bytes to each process of the second group
    for (by, to), size in passed.items():
        arrived[by] += size
        left[to] += size
    place_in_first, place_in_second = ({m: k for k, m in enumerate(group)} for group in groups)
    arrive = sorted(passed, key=lambda pair: (place_in_first[pair[0]], pair[1]))
    leave = sorted(passed, key=lambda pair: (place_in_second[pair[1]], pair[0]))
    position = {pair: k for k, pair in enumerate(arrive)}
    sizes, order = [passed[pair] for pair in arrive], [position[pair] for pair in leave]
    hops = [
        Hop(
            [sum(outgoing[to] for to in over_out.get(m, ())) for m in first],
            [arrived[m] for m in first],
        ),
        Hop(
            [left[m] for m in second],
            [sum(incoming[by] for by in over_in.get(m, ())) for m in second],
            Message(sum(sizes), lambda message: [*map(message.split(sizes).__getitem__, order)]),
        ),
    ]
    sent = [to for m in first for to in over_out.get(m, ())]
    received = [by for m in second for by in over_in.get(m, ())]
    return _route_of(exchange, sent, received, hops, gather)


def _route_of(
    exchange: Exchange,
    sent: Iterable[int],
    received: Iterable[int],
    hops: list[Hop],
    gather: bool,
) -> ExchangeRoute:
    """Return the route of an exchange: messages in the order of these ranks, over these hops."""
    outgoing = runs_of(_with_offsets(exchange.outgoing, sent), of_blocks=not gather)
    incoming = runs_of(_with_offsets(exchange.incoming, received), of_blocks=gather)
    return ExchangeRoute(
        Packing(outgoing, sum(hops[0].outgoing), of_blocks=not gather),
        Packing(incoming, sum(hops[-1].incoming), of_blocks=gather),
        hops,
    )


def _grouped_by_relay(sizes: Iterable[int], via: Callable[[int], int]) -> dict[int, list[int]]:
    """Return {relay: sorted ranks whose messages go over it}."""
    found: dict[int, list[int]] = {}
    for rank in sorted(sizes):
        found.setdefault(via(rank), []).append(rank)
    return found


def _message_sizes(messages: Messages) -> dict[int, int]:
    """Return {rank: bytes} of messages; those without bytes are left out."""
    sizes = {rank: fragments_bytes(some) for rank, some in messages.items()}
    return {rank: size for rank, size in sizes.items() if size}


def _with_offsets(messages: Messages, order: Iterable[int]) -> Iterator[tuple[Fragment, int]]:
    """Yield (fragment, first byte) of messages concatenated in the order of these ranks."""
    start = 0
    for rank in order:
        fragments = messages.get(rank, ())
        offset = start
        for fragment in fragments:
            yield fragment, offset
            offset += fragment.nbytes
        start += fragments_bytes(fragments)
