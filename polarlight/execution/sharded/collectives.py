"""Process groups, DTensors and uneven all-to-all, from `torch.distributed`.

DTensor is imported on use, as in torch itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, cached_property
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from polarlight.execution.sharded.layouts import Coordinate, Layout, Split
from polarlight.linalg.row_sums import Rows

ProcessGroup = Any
"""A `torch.distributed.ProcessGroup`."""


class MeshKey(tuple[int, tuple[int, ...], tuple[int, ...]]):
    """Size, global ranks by place (row-major), and shape of a mesh.

    Equal keys are one object, made by `mesh_key`: thousands of ranks are not compared in a step.
    Smaller meshes come first, and of the same processes the mesh of fewer dimensions: it has the
    fewer and larger matrices, beside which those of the other one find their places.
    """

    __hash__ = object.__hash__
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __lt__(self, other: tuple[object, ...]) -> bool:
        """Order by size, ranks, number of dimensions, then shape: smaller meshes first."""
        assert isinstance(other, MeshKey)
        (size, ranks, shape), (size_2, ranks_2, shape_2) = self, other
        return (size, ranks, len(shape), shape) < (size_2, ranks_2, len(shape_2), shape_2)


@cache
def mesh_key(size: int, ranks: tuple[int, ...], shape: tuple[int, ...]) -> MeshKey:
    """Return the key of a mesh; the same object for equal arguments."""
    return MeshKey((size, ranks, shape))


@dataclass(frozen=True)
class ProcessMesh:
    """Mesh of processes that share the work on some parameters.

    Attributes:
        group: Process group of exactly these processes.
        rank: Rank of this process in the group.
        shape: Size of each mesh dimension.
        coordinates: Mesh coordinate of each process, by rank in the group.
        ranks: Global ranks, by rank in the group.
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

    @cached_property
    def key(self) -> MeshKey:
        """Key of size, global ranks in mesh order and shape; equal keys hold every layout alike.

        Two meshes of equal ranks and shape may differ in who is where. Keys order meshes equally
        on all processes, smaller ones first.
        """
        by_place = sorted(zip(self.coordinates, self.ranks, strict=True))
        return mesh_key(self.size, tuple(rank for _, rank in by_place), self.shape)

    def __str__(self) -> str:
        """Return the shape of the mesh and the range of its ranks."""
        return f"mesh {' x '.join(map(str, self.shape))} of ranks {format_ranks(self.ranks)}"


def world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def format_ranks(ranks: Sequence[int]) -> str:
    """Return ranks as text: `first-last` if consecutive, else up to eight, dots and the highest."""
    low, high = min(ranks), max(ranks)
    if low == high:
        return str(low)
    if high - low + 1 == len(ranks):
        return f"{low}-{high}"
    some = ", ".join(map(str, sorted(ranks)[:8]))
    return some if len(ranks) <= 8 else f"{some}, ..., {high}"


def mesh_of_group(group: ProcessGroup, device: str) -> ProcessMesh:
    """Return a mesh of one dimension over the ranks of a process group, as for DDP."""
    ranks = tuple(dist.get_process_group_ranks(group))
    coordinates = tuple((place,) for place in range(len(ranks)))
    return ProcessMesh(group, dist.get_rank(group), (len(ranks),), coordinates, ranks, device)


def mesh_of_dtensor(x: Any) -> ProcessMesh | None:
    """Return a DTensor's mesh (None if not on it); store its groups; may make one: a collective."""
    mesh = x.device_mesh
    if mesh.get_coordinate() is None:
        return None
    on_mesh = [int(rank) for rank in mesh.mesh.flatten()]
    known = _groups.setdefault(dist.group.WORLD, WeakValueDictionary())
    for axis in range(mesh.ndim):  # for `group_of_ranks`; a group that is stored already stays
        along = mesh.get_group(axis)
        known.setdefault(tuple(sorted(dist.get_process_group_ranks(along))), along)
    group = mesh.get_group() if mesh.ndim == 1 else group_of_ranks(on_mesh)
    ranks = tuple(dist.get_process_group_ranks(group))
    shape = tuple(mesh.shape)
    # The group may order its ranks otherwise than the mesh, which is row-major.
    by_rank = dict(zip(on_mesh, product(*map(range, shape)), strict=True))
    coordinates = tuple(by_rank[rank] for rank in ranks)
    return ProcessMesh(group, dist.get_rank(group), shape, coordinates, ranks, mesh.device_type)


class MeshTable:
    """Cache of process meshes, by device mesh or process group."""

    def __init__(self) -> None:
        """Start with an empty cache."""
        self._known: dict[Any, ProcessMesh | None] = {}
        self._last: tuple[Any, ProcessMesh | None] = None, None  # a mesh takes long to hash

    def of_dtensor(self, x: Any) -> ProcessMesh | None:
        """Return a DTensor's mesh, made (a collective) on first use; None if not on it."""
        mesh = x.device_mesh
        if mesh is not self._last[0]:
            found = self._known[mesh] if mesh in self._known else mesh_of_dtensor(x)
            self._known[mesh], self._last = found, (mesh, found)
        return self._last[1]

    def of_plain(self, x: Tensor, group: ProcessGroup | None) -> ProcessMesh | None:
        """Return the group as a mesh, cached per device type of x; None without a group."""
        if group is None:
            return None
        key = (group, x.device.type)
        if key not in self._known:
            self._known[key] = mesh_of_group(group, x.device.type)
        return self._known[key]


_groups: WeakKeyDictionary[Any, WeakValueDictionary[tuple[int, ...], Any]] = WeakKeyDictionary()
"""Groups made here, by their ranks, for each default group. Weak: torch keeps and destroys them."""


def group_of_ranks(ranks: Sequence[int]) -> ProcessGroup:
    """Return the process group of these global ranks, or make it; all of them must call this.

    It is made once per set of ranks, for all optimizers, with the timeout of the default group.
    """
    everyone, wanted = dist.group.WORLD, tuple(sorted(ranks))
    if len(wanted) == dist.get_world_size():
        return everyone
    known = _groups.setdefault(everyone, WeakValueDictionary())
    if wanted not in known:
        known[wanted] = dist.new_group(
            list(wanted), timeout=_timeout_of(everyone), use_local_synchronization=True
        )
    return known[wanted]


def _timeout_of(group: ProcessGroup) -> timedelta | None:
    """Return the timeout of a group's collectives; None where its backend does not tell."""
    for device in group._device_types:
        options = getattr(group._get_backend(device), "options", None)
        if (found := getattr(options, "_timeout", None)) is not None:
            return found  # type: ignore[no-any-return]
    return None


def reduce_max(x: Tensor, mesh: ProcessMesh) -> Tensor:
    """All-reduce a tensor in place to its elementwise maximum over a mesh; return it."""
    dist.all_reduce(x, dist.ReduceOp.MAX, group=mesh.group)
    return x


def gather_equal(x: Tensor, mesh: ProcessMesh) -> Tensor:
    """All-gather tensors of equal shape; return them stacked by rank in the group, [size, ...]."""
    found = [torch.empty_like(x) for _ in range(mesh.size)]
    dist.all_gather(found, x, group=mesh.group)
    return torch.stack(found)


def layout_of(x: Any, name: str) -> Layout:
    """Return the layout of a DTensor: its shape, its mesh's shape, and the cut per mesh dimension.

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


def sharded_zeros(
    x: Any, name: str, shape: torch.Size, *, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Return zeros [shape] as a DTensor on the mesh of x, cut by `Layout.for_buffer` of x."""
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    layout = layout_of(x, name).for_buffer(shape)
    coordinate = x.device_mesh.get_coordinate()
    held = (0,) if coordinate is None else layout.local_shape(tuple(coordinate))
    return DTensor.from_local(
        torch.zeros(held, dtype=dtype, device=device),
        x.device_mesh,
        [
            Replicate()
            if split is None
            else Shard(split.dim)
            if split.factor == 1
            else _StridedShard(split.dim, split_factor=split.factor)
            for split in layout.splits
        ],
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )


def as_dtensor_like(shard: Tensor, x: Any) -> Tensor:
    """Return a shard as a DTensor with the mesh, placements and shape of the DTensor `x`."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        shard, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride()
    )


def redistributed_gradient(parameter: Any) -> Any:
    """Return `parameter.grad` in the parameter's placements; a collective if they differ."""
    gradient: Any = parameter.grad
    reduced = gradient.placements == parameter.placements
    return gradient if reduced else gradient.redistribute(placements=parameter.placements)


@dataclass(frozen=True, slots=True)
class SharedRows(Rows):
    """Rows of a matrix that is sharded by rows over process groups.

    Attributes:
        groups: One group per mesh dimension that cuts the rows; sums are reduced over each.
        total: Number of rows of the whole matrix.
        device: Type of the device on which collectives run.
        copies: Groups of processes with copies of these rows, each with the global rank whose sums
            all of them take. Empty where a backend adds in the same order in every group.
    """

    groups: tuple[ProcessGroup, ...]
    total: int
    device: str
    copies: tuple[tuple[ProcessGroup, int], ...] = ()

    def count(self, X: Tensor) -> int:
        """Return `total`, the rows of the whole matrix; does not read X or communicate."""
        return self.total

    def sum(self, x: Tensor) -> Tensor:
        """Return a new tensor: x summed over processes with rows of the matrix; a collective."""
        return self._all_reduce(x, dist.ReduceOp.SUM)

    def max(self, x: Tensor) -> Tensor:
        """Return a new tensor: elementwise maximum of x over processes with rows of the matrix."""
        return self._all_reduce(x, dist.ReduceOp.MAX)

    def _all_reduce(self, x: Tensor, operation: Any) -> Tensor:
        """Return a copy of a tensor, reduced over each group, equal in all copies of the rows."""
        shared = x.clone() if x.device.type == self.device else x.to(self.device)
        for group in self.groups:
            dist.all_reduce(shared, operation, group=group)
        for group, source in self.copies:
            dist.broadcast(shared, src=source, group=group)
        return shared.to(x.device)


def shared_rows(x: Any, row_axes: Sequence[int]) -> SharedRows:
    """Return reductions over rows of DTensor x, sharded along mesh dimensions `row_axes`."""
    mesh = x.device_mesh
    groups = tuple(mesh.get_group(axis) for axis in row_axes)
    replicated = [a for a, p in enumerate(x.placements) if p.is_replicate() and mesh.size(a) > 1]
    copies = tuple(
        (group, dist.get_process_group_ranks(group)[0])
        for group in (mesh.get_group(axis) for axis in replicated)
        if not all(map(adds_in_order_of_ranks, groups))
    )
    return SharedRows(groups, x.shape[-2], mesh.device_type, copies)


def adds_in_order_of_ranks(group: ProcessGroup) -> bool:
    """Return whether a group adds in the order of ranks, as gloo does: equal bits everywhere.

    Gloo's order is that of the ranks. NCCL chooses rings and trees by the links between devices,
    which may differ from group to group.
    """
    return dist.get_backend(group) == "gloo"


@dataclass(frozen=True, slots=True)
class Subgroup:
    """Subset of the processes of a mesh, with its process group.

    Attributes:
        group: Process group of exactly these.
        mesh_ranks: Their ranks in the mesh, in the order of the group.
    """

    group: ProcessGroup
    mesh_ranks: tuple[int, ...]


def subgroup(mesh: ProcessMesh, mesh_ranks: Sequence[int]) -> Subgroup:
    """Return the process group of these mesh ranks, made if needed; all of them must call this."""
    ranks = [mesh.ranks[rank] for rank in mesh_ranks]
    group = mesh.group if len(mesh_ranks) == mesh.size else group_of_ranks(ranks)
    place = {rank: k for k, rank in enumerate(mesh.ranks)}
    return Subgroup(group, tuple(place[rank] for rank in dist.get_process_group_ranks(group)))


@dataclass(frozen=True, slots=True)
class InFlight:
    """All-to-all that has been started."""

    received: Tensor
    sent: Tensor
    handle: Any

    def wait(self) -> Tensor:
        """Wait for the all-to-all; return what was received, concatenated in the order of ranks."""
        self.handle.wait()
        return self.received


def start_exchange(
    sent: Tensor, received: Tensor, outgoing: list[int], incoming: list[int], group: ProcessGroup
) -> InFlight:
    """Start an all-to-all: outgoing[k] entries of `sent` to rank k, incoming[k] to `received`."""
    handle = dist.all_to_all_single(received, sent, incoming, outgoing, group=group, async_op=True)
    return InFlight(received, sent, handle)


def start_broadcast(x: Tensor, source: int, group: ProcessGroup) -> Any:
    """Start a broadcast of x from global rank `source` into x; return a handle to wait on."""
    return dist.broadcast(x, src=source, group=group, async_op=True)


def all_reduce_sum(tensors: Sequence[Tensor], group: ProcessGroup) -> None:
    """All-reduce every tensor in place to its sum over the group; returns when all are done."""
    handles = [dist.all_reduce(x, group=group, async_op=True) for x in tensors]
    for handle in handles:
        handle.wait()


def all_gather_object(value: Any, group: ProcessGroup) -> list[Any]:
    """Return the objects of all processes of the group, by rank; every process must call this."""
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered
