"""Routes: sizes, order and copies of an exchange's messages, found once and used in every step.

An owner on thousands of processes receives thousands of messages. Fragments that lie at equal
distances in the received bytes and side by side in a matrix are copied together.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polarlight.execution.sharded.schedule import (
    Exchange,
    Fragment,
    Messages,
    fragments_bytes,
    message_bytes,
)
from polarlight.execution.sharded.topology import Axes, Topology
from polarlight.linalg import foreach

TensorOf = Callable[[Fragment], Tensor]
"""Fragment -> the part of a local tensor that it is copied from or to."""


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
        strides = [1] * len(self.shape)
        for dim in range(len(self.shape) - 1, 0, -1):
            strides[dim - 1] = strides[dim] * self.shape[dim]
        more = () if self.count == 1 else (self.stride // self.fragment.itemsize,)
        return (*more, *strides)

    def in_tensor(self, x: Tensor) -> Tensor:
        """Return the run's part x of a tensor as a view [count, *shape]; only for count > 1."""
        if self.dim is None:
            return x.expand(self.count, *self.shape)
        apart: Tensor = x.unflatten(self.dim, (self.count, self.shape[self.dim]))
        return apart.movedim(self.dim, 0)


class Packing:
    """Runs of one message, with their places in it.

    Args:
        runs: The runs.
    """

    def __init__(self, runs: Sequence[FragmentRun]) -> None:
        """Compute the shape, strides and first entry of each run in the message."""
        self.runs = runs
        self._shapes = [run.shape_in_message for run in runs]
        self._strides = [run.strides_in_message for run in runs]
        self._offsets = [run.offset // run.fragment.itemsize for run in runs]
        self._joined = [k for k, run in enumerate(runs) if run.count > 1]

    def copy_in(self, tensors: Sequence[Tensor], message: Tensor) -> None:
        """Copy tensors, one per run, to their places in a message of bytes."""
        self._copy(self._message_views(message, tensors), self._tensor_views(tensors))

    def copy_out(self, message: Tensor, tensors: Sequence[Tensor]) -> None:
        """Copy a message of bytes into tensors, one per run."""
        self._copy(self._tensor_views(tensors), self._message_views(message, tensors))

    def _tensor_views(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return each run's tensor as a view in the run's `shape_in_message`."""
        own = list(tensors)
        for k in self._joined:
            own[k] = self.runs[k].in_tensor(own[k])
        return own

    def _message_views(self, message: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """Return views of the message, one per run, with the dtypes of the tensors in `like`."""
        dtypes = [x.dtype for x in like]
        typed = {dtype: message.view(dtype) for dtype in set(dtypes)}
        messages = map(typed.__getitem__, dtypes)
        # Thousands of views: `map` of the method has no frame of Python for each.
        return list(map(Tensor.as_strided, messages, self._shapes, self._strides, self._offsets))

    @staticmethod
    def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
        """Copy sources to targets of equal shapes, all in one call; nothing if there are none."""
        if targets:
            foreach.copy_(targets, sources)


def runs_of(placed: Iterable[tuple[Fragment, int]], *, in_blocks: bool) -> list[FragmentRun]:
    """Join (fragment, first byte in the message) pairs into runs that are copied in one piece.

    Args:
        placed: The fragments.
        in_blocks: Whether they are parts of whole matrices; of shards otherwise.
    """
    by_tensor: dict[tuple[int, str], list[tuple[list[int], Fragment, int]]] = {}
    for fragment, offset in placed:
        starts = [s.start for s in _slices(fragment, in_blocks)]
        of_tensor = by_tensor.setdefault((fragment.matrix, fragment.name), [])
        of_tensor.append((starts, fragment, offset))
    runs: list[FragmentRun] = []
    for of_tensor in by_tensor.values():
        first = len(runs)
        for _, fragment, offset in sorted(of_tensor, key=lambda entry: entry[0]):
            longer = _joined(runs[-1], fragment, offset, in_blocks) if runs[first:] else None
            if longer is not None:
                runs[-1] = longer
            else:
                runs.append(FragmentRun(fragment, fragment.segment.shape, None, offset, 1, 0))
    return runs


def _slices(fragment: Fragment, in_blocks: bool) -> tuple[slice, ...]:
    """Return the slices of a fragment in the matrix's block, or in the shard."""
    return fragment.segment.of_block if in_blocks else fragment.segment.of_shard


def _joined(
    run: FragmentRun, fragment: Fragment, offset: int, in_blocks: bool
) -> FragmentRun | None:
    """Return the run lengthened by a fragment; None if its place or bytes do not continue it."""
    before, here = _slices(run.fragment, in_blocks), _slices(fragment, in_blocks)
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
        name = "of_block" if in_blocks else "of_shard"
        segment = replace(joined.segment, shape=shape, **{name: tuple(slices)})
        joined = replace(joined, segment=segment)
    return FragmentRun(joined, run.shape, dim, run.offset, count, stride)


@dataclass(frozen=True, slots=True)
class Hop:
    """One all-to-all within a group.

    Attributes:
        outgoing: Bytes to each process of the group.
        incoming: Bytes from each process of the group.
        pieces: Bytes of the messages that the hop before brought, in their order.
        order: Those of them that are sent on, in the order of this hop.
    """

    outgoing: list[int]
    incoming: list[int]
    pieces: list[int]
    order: list[int]


@dataclass(frozen=True, slots=True)
class ExchangeRoute:
    """Way of one exchange's messages from and to this process.

    Attributes:
        sent: Outgoing fragments in the bytes that are sent first.
        received: Incoming fragments in the bytes that arrive last.
        hops: One all-to-all, or one within the node and one across nodes.
    """

    sent: Packing
    received: Packing
    hops: list[Hop]

    def pack(self, tensor_of: TensorOf, device: str) -> Tensor:
        """Return the outgoing fragments copied into one tensor of bytes, on the device."""
        tensors = [tensor_of(run.fragment) for run in self.sent.runs]
        homes = {x.device for x in tensors}
        home = homes.pop() if len(homes) == 1 else torch.device(device)
        # Between messages there may be a few bytes that nobody reads.
        message = torch.zeros(sum(self.hops[0].outgoing), dtype=torch.uint8, device=home)
        self.sent.copy_in(tensors, message)
        return message if home.type == torch.device(device).type else message.to(device)

    def unpack(self, message: Tensor, tensor_of: TensorOf) -> None:
        """Copy the fragments of received bytes to their places, on whatever device these are."""
        tensors = [tensor_of(run.fragment) for run in self.received.runs]
        homes = {x.device for x in tensors}
        self.received.copy_out(message.to(homes.pop()) if len(homes) == 1 else message, tensors)


def direct_route(exchange: Exchange, group: Sequence[int], *, gather: bool) -> ExchangeRoute:
    """Return the packing and all-to-all of an exchange in one hop in a group of mesh ranks."""
    outgoing, incoming = _message_sizes(exchange.outgoing), _message_sizes(exchange.incoming)
    hop = Hop([outgoing.get(m, 0) for m in group], [incoming.get(m, 0) for m in group], [], [])
    return ExchangeRoute(
        Packing(runs_of(_with_offsets(exchange.outgoing, group), in_blocks=not gather)),
        Packing(runs_of(_with_offsets(exchange.incoming, group), in_blocks=gather)),
        [hop],
    )


def relayed_route(
    exchange: Exchange,
    topology: Topology,
    axes: Axes,
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
        axes: Replicated mesh dimensions of its parameters.
        rank: This process.
        groups: Ranks of the groups of the first and of the second hop, in their order.
        gather: Whether messages go to owners; they come from them otherwise.
    """

    def via(source: int, destination: int) -> int:
        """Return the relay of a message."""
        peer, owner = (source, destination) if gather else (destination, source)
        return topology.via(axes, peer, owner)

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
    place, column = ({m: k for k, m in enumerate(group)} for group in groups)
    arrive = sorted(passed, key=lambda pair: (place[pair[0]], pair[1]))
    leave = sorted(passed, key=lambda pair: (column[pair[1]], pair[0]))
    position = {pair: k for k, pair in enumerate(arrive)}
    hops = [
        Hop(
            [sum(outgoing[to] for to in over_out.get(m, ())) for m in first],
            [arrived[m] for m in first],
            [],
            [],
        ),
        Hop(
            [left[m] for m in second],
            [sum(incoming[by] for by in over_in.get(m, ())) for m in second],
            [passed[pair] for pair in arrive],
            [position[pair] for pair in leave],
        ),
    ]
    sent = [to for m in first for to in over_out.get(m, ())]
    received = [by for m in second for by in over_in.get(m, ())]
    return ExchangeRoute(
        Packing(runs_of(_with_offsets(exchange.outgoing, sent), in_blocks=not gather)),
        Packing(runs_of(_with_offsets(exchange.incoming, received), in_blocks=gather)),
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
