"""The only module that talks to `torch.distributed`: groups, DTensors, uneven all-to-all.

`torch.distributed` comes with `import torch`; what torch itself imports on use, so does this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from polarlight.execution.sharded.layouts import Coordinate, Layout, Split
from polarlight.linalg.row_sums import Rows

Group = Any
"""A `torch.distributed.ProcessGroup`."""


@dataclass(frozen=True, slots=True)
class Arena:
    """Processes that share the work on some parameters.

    Attributes:
        group: Their process group.
        rank: This process in it.
        mesh: Sizes of the mesh's dimensions.
        coordinates: Of each process of the group, by rank.
        ranks: Their global ranks; says which arena it is.
        device: Where collectives and directions run.
    """

    group: Group
    rank: int
    mesh: tuple[int, ...]
    coordinates: tuple[Coordinate, ...]
    ranks: tuple[int, ...]
    device: str

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self.ranks)

    def __str__(self) -> str:
        return f"mesh {' x '.join(map(str, self.mesh))} of ranks {self.ranks[0]}-{self.ranks[-1]}"


def arena_of_group(group: Group, device: str) -> Arena:
    """Processes with equal plain tensors: what `DistributedDataParallel` runs on."""
    ranks = tuple(dist.get_process_group_ranks(group))
    places = tuple((place,) for place in range(len(ranks)))
    return Arena(group, dist.get_rank(group), (len(ranks),), places, ranks, device)


def arena_of(x: Any) -> Arena | None:
    """The processes of a DTensor's mesh; None if this one is not among them."""
    mesh = x.device_mesh
    if mesh.get_coordinate() is None:
        return None
    on_mesh = [int(rank) for rank in mesh.mesh.flatten()]
    group = _group_of(mesh, on_mesh)
    ranks = tuple(dist.get_process_group_ranks(group))
    shape = tuple(mesh.shape)
    places = {rank: place for place, rank in enumerate(on_mesh)}
    coordinates = tuple(_coordinate(places[rank], shape) for rank in ranks)
    device = mesh.device_type
    return Arena(group, dist.get_rank(group), shape, coordinates, ranks, device)


def _coordinate(place: int, shape: tuple[int, ...]) -> Coordinate:
    found = []
    for size in reversed(shape):
        found.append(place % size)
        place //= size
    return tuple(reversed(found))


def _group_of(mesh: Any, ranks: Sequence[int]) -> Group:
    """A group of exactly the mesh's processes."""
    if mesh.ndim == 1:
        return mesh.get_group()
    if len(ranks) == dist.get_world_size():
        return dist.group.WORLD
    return dist.new_group(sorted(ranks), use_local_synchronization=True)


def largest(x: Tensor, mesh: Any) -> Tensor:
    """Elementwise, the largest value that a process of the mesh has; every one must ask at once."""
    result = x.to(mesh.device_type, copy=True)
    if mesh.get_coordinate() is not None:
        for axis in range(mesh.ndim):
            dist.all_reduce(result, dist.ReduceOp.MAX, group=mesh.get_group(axis))
    return result


def layout_of(x: Any, name: str) -> Layout:
    """How a DTensor lies on its mesh.

    Raises:
        ValueError: If a placement is neither a shard nor a copy.
    """
    splits: list[Split | None] = []
    for placement in x.placements:
        if placement.is_replicate():
            splits.append(None)
        elif type(placement).__name__ in ("Shard", "_StridedShard"):
            factor = int(getattr(placement, "split_factor", 1))
            splits.append(Split(placement.dim % x.ndim, factor))
        else:
            raise ValueError(
                f"{name} has placement {placement} on {x.device_mesh}, from which no matrix can be "
                "put together; parameters must be Shard(dim) or Replicate() on every mesh "
                "dimension: use parameter.redistribute(placements=...) before the optimizer is used"
            )
    return Layout(tuple(x.shape), tuple(x.device_mesh.shape), tuple(splits))


def replicated(shape: Sequence[int], arena: Arena) -> Layout:
    """How a plain tensor lies: everything everywhere."""
    return Layout(tuple(shape), arena.mesh, (None,) * len(arena.mesh))


def zeros_beside(
    x: Any, name: str, shape: torch.Size, *, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """A DTensor of zeros for the state of the DTensor `x`, where `Layout.beside` puts it."""
    from torch.distributed.tensor import DTensor

    layout = layout_of(x, name).beside(shape)
    coordinate = x.device_mesh.get_coordinate()
    held = (0,) if coordinate is None else layout.local_shape(tuple(coordinate))
    return DTensor.from_local(
        torch.zeros(held, dtype=dtype, device=device),
        x.device_mesh,
        [_placement(split) for split in layout.splits],
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )


def _placement(split: Split | None) -> Any:
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    if split is None:
        return Replicate()
    if split.factor == 1:
        return Shard(split.dim)
    return _StridedShard(split.dim, split_factor=split.factor)


def like(shard: Tensor, x: Any) -> Tensor:
    """A shard as a DTensor that lies like the DTensor `x`."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        shard, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride()
    )


def gradient_beside(parameter: Any) -> Tensor:
    """The gradient as it lies beside the parameter; sums that are pending are made."""
    gradient: Any = parameter.grad
    if gradient.placements != parameter.placements:
        gradient = gradient.redistribute(placements=parameter.placements)
    return gradient.to_local()  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class SharedRows(Rows):
    """Some rows are here; the others lie on the other processes of a group.

    Attributes:
        groups: The holders: sums are completed along one dimension of a mesh after another.
        total: Rows of the whole matrix.
        device: Where collectives run.
    """

    groups: tuple[Group, ...]
    total: int
    device: str

    def count(self, X: Tensor) -> int:
        """Rows of the whole matrix."""
        return self.total

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the group."""
        return self._reduced(x, dist.ReduceOp.SUM)

    def max(self, x: Tensor) -> Tensor:
        """The largest of the group's."""
        return self._reduced(x, dist.ReduceOp.MAX)

    def _reduced(self, x: Tensor, operation: Any) -> Tensor:
        shared = x.clone() if x.device.type == self.device else x.to(self.device)
        for group in self.groups:
            dist.all_reduce(shared, operation, group=group)
        return shared.to(x.device)


def rows_of(x: Any, axes: Sequence[int]) -> SharedRows:
    """The rows of a DTensor that these dimensions of its mesh cut."""
    mesh = x.device_mesh
    groups = tuple(mesh.get_group(axis) for axis in axes)
    return SharedRows(groups, x.shape[-2], mesh.device_type)


@dataclass(frozen=True, slots=True)
class Pending:
    """An all-to-all under way."""

    received: Tensor
    sent: Tensor
    handle: Any

    def wait(self) -> Tensor:
        """What all processes sent, one after another, once it is here."""
        self.handle.wait()
        return self.received


def start_exchange(sent: Tensor, outgoing: list[int], incoming: list[int], arena: Arena) -> Pending:
    """Sends `outgoing[r]` entries of the vector `sent` to each rank r, and returns at once."""
    received = sent.new_empty(sum(incoming))
    handle = dist.all_to_all_single(
        received, sent, incoming, outgoing, group=arena.group, async_op=True
    )
    return Pending(received, sent, handle)


def gather_objects(value: Any, arena: Arena) -> list[Any]:
    """What each process of the arena says; waits for all of them."""
    return said_by_all(value, arena.group)


def sum_over(tensors: Sequence[Tensor], group: Group) -> None:
    """Replaces every tensor by its sum over the group; every process must ask at once."""
    handles = [dist.all_reduce(x, group=group, async_op=True) for x in tensors]
    for handle in handles:
        handle.wait()


def said_by_all(value: Any, group: Group) -> list[Any]:
    """What each process of the group says, by rank; waits for all of them."""
    said: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(said, value, group=group)
    return said
