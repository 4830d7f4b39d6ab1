"""Process groups, DTensors and uneven all-to-all; no other module imports `torch.distributed`.

DTensor is imported on use, as in torch itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from polarlight.execution.sharded.layouts import Coordinate, Layout, Split
from polarlight.linalg.row_sums import Rows

ProcessGroup = Any
"""A `torch.distributed.ProcessGroup`."""


@dataclass(frozen=True, slots=True)
class ProcessMesh:
    """Mesh of processes that share the work on some parameters.

    Attributes:
        group: Process group of exactly these processes.
        rank: Rank of this process in the group.
        shape: Size of each mesh dimension.
        coordinates: Mesh coordinate of each process, by rank in the group.
        ranks: Global ranks; they identify the mesh.
        device: Type of the device on which collectives and directions run.
    """

    group: ProcessGroup
    rank: int
    shape: tuple[int, ...]
    coordinates: tuple[Coordinate, ...]
    ranks: tuple[int, ...]
    device: str

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self.ranks)

    def __str__(self) -> str:
        """Return the shape of the mesh and the range of its ranks."""
        return f"mesh {' x '.join(map(str, self.shape))} of ranks {self.ranks[0]}-{self.ranks[-1]}"


def mesh_of_group(group: ProcessGroup, device: str) -> ProcessMesh:
    """Return a process group as a mesh of one dimension, as for `DistributedDataParallel`."""
    ranks = tuple(dist.get_process_group_ranks(group))
    coordinates = tuple((place,) for place in range(len(ranks)))
    return ProcessMesh(group, dist.get_rank(group), (len(ranks),), coordinates, ranks, device)


def mesh_of_dtensor(x: Any) -> ProcessMesh | None:
    """Return the process mesh of a DTensor; None if this process is not on it."""
    mesh = x.device_mesh
    if mesh.get_coordinate() is None:
        return None
    on_mesh = [int(rank) for rank in mesh.mesh.flatten()]
    group = _group_of(mesh, on_mesh)
    ranks = tuple(dist.get_process_group_ranks(group))
    shape = tuple(mesh.shape)
    # The group may order its ranks otherwise than the mesh, which is row-major.
    by_rank = dict(zip(on_mesh, product(*map(range, shape)), strict=True))
    coordinates = tuple(by_rank[rank] for rank in ranks)
    return ProcessMesh(group, dist.get_rank(group), shape, coordinates, ranks, mesh.device_type)


def _group_of(mesh: Any, ranks: Sequence[int]) -> ProcessGroup:
    """Return a process group of exactly the mesh's processes."""
    if mesh.ndim == 1:
        return mesh.get_group()
    if len(ranks) == dist.get_world_size():
        return dist.group.WORLD
    return dist.new_group(sorted(ranks), use_local_synchronization=True)


def elementwise_max(x: Tensor, mesh: Any) -> Tensor:
    """Return the elementwise maximum over a device mesh; every process must call this."""
    result = x.to(mesh.device_type, copy=True)
    if mesh.get_coordinate() is not None:
        for axis in range(mesh.ndim):
            dist.all_reduce(result, dist.ReduceOp.MAX, group=mesh.get_group(axis))
    return result


def layout_of(x: Any, name: str) -> Layout:
    """Return the layout of a DTensor on its mesh.

    Raises:
        ValueError: If a placement is neither `Shard` nor `Replicate`.
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


def replicated_layout(shape: Sequence[int], mesh: ProcessMesh) -> Layout:
    """Return the layout of a plain tensor that every process holds in full."""
    return Layout(tuple(shape), mesh.shape, (None,) * len(mesh.shape))


def zeros_beside(
    x: Any, name: str, shape: torch.Size, *, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Return a DTensor of zeros for a buffer of the DTensor `x`, sharded by `Layout.for_buffer`."""
    from torch.distributed.tensor import DTensor

    layout = layout_of(x, name).for_buffer(shape)
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
    """Return the DTensor placement of one mesh dimension of a layout."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    if split is None:
        return Replicate()
    if split.factor == 1:
        return Shard(split.dim)
    return _StridedShard(split.dim, split_factor=split.factor)


def as_dtensor_like(shard: Tensor, x: Any) -> Tensor:
    """Return a shard as a DTensor with the mesh, placements and shape of the DTensor `x`."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        shard, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride()
    )


def redistributed_gradient(parameter: Any) -> Tensor:
    """Return the local gradient of a DTensor in its placements; reduces a pending sum."""
    gradient: Any = parameter.grad
    if gradient.placements != parameter.placements:
        gradient = gradient.redistribute(placements=parameter.placements)
    return gradient.to_local()  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class SharedRows(Rows):
    """Rows of a matrix that is sharded by rows over process groups.

    Attributes:
        groups: One group per mesh dimension that cuts the rows; sums are reduced over each.
        total: Number of rows of the whole matrix.
        device: Type of the device on which collectives run.
    """

    groups: tuple[ProcessGroup, ...]
    total: int
    device: str

    def count(self, X: Tensor) -> int:
        """Return the number of rows of the whole matrix."""
        return self.total

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, by all-reduce."""
        return self._all_reduce(x, dist.ReduceOp.SUM)

    def max(self, x: Tensor) -> Tensor:
        """Return the elementwise maximum of a tensor over all processes, by all-reduce."""
        return self._all_reduce(x, dist.ReduceOp.MAX)

    def _all_reduce(self, x: Tensor, operation: Any) -> Tensor:
        """Return a copy of a tensor, all-reduced over one process group after another."""
        shared = x.clone() if x.device.type == self.device else x.to(self.device)
        for group in self.groups:
            dist.all_reduce(shared, operation, group=group)
        return shared.to(x.device)


def shared_rows(x: Any, axes: Sequence[int]) -> SharedRows:
    """Return the row reductions of a DTensor whose rows are cut by these mesh dimensions."""
    mesh = x.device_mesh
    groups = tuple(mesh.get_group(axis) for axis in axes)
    return SharedRows(groups, x.shape[-2], mesh.device_type)


@dataclass(frozen=True, slots=True)
class Pending:
    """All-to-all that has been started."""

    received: Tensor
    sent: Tensor
    handle: Any

    def wait(self) -> Tensor:
        """Wait for the all-to-all; return what was received, in the order of ranks."""
        self.handle.wait()
        return self.received


def start_exchange(
    sent: Tensor, outgoing: list[int], incoming: list[int], mesh: ProcessMesh
) -> Pending:
    """Start an all-to-all that sends `outgoing[r]` entries of the vector `sent` to each rank r."""
    received = sent.new_empty(sum(incoming))
    handle = dist.all_to_all_single(
        received, sent, incoming, outgoing, group=mesh.group, async_op=True
    )
    return Pending(received, sent, handle)


def all_reduce_sum(tensors: Sequence[Tensor], group: ProcessGroup) -> None:
    """Replace every tensor by its sum over the group; every process must call this."""
    handles = [dist.all_reduce(x, group=group, async_op=True) for x in tensors]
    for handle in handles:
        handle.wait()


def all_gather_object(value: Any, group: ProcessGroup) -> list[Any]:
    """Return the object of each process of the group, by rank; waits for all of them."""
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered
