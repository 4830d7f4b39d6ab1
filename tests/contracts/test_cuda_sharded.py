"""Steps of `Sharded` on fake CUDA devices: DTensors of a fake process group, without a GPU.

The processes are one: its collectives return at once, and what others would have sent is assumed.
"""

from functools import cache
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import polarlight
from benchmarks.fake_cuda import Operations, Record, fake_cuda
from polarlight import NonFinite, SpectralOptimizer
from tests.contracts.test_cuda import SYNCHRONIZES, WAITS, addresses, waits
from tests.releases import needs_copies_of_fakes

pytestmark = needs_copies_of_fakes

WORLD = 4
SHAPES = [(64, 32), (64, 32), (32, 64), (48, 48)]
LAYOUTS = {
    "rows": ((WORLD,), [Shard(0)]),
    "columns": ((WORLD,), [Shard(1)]),
    "copies of rows": ((2, 2), [Replicate(), Shard(0)]),
    "rows and columns": ((2, 2), [Shard(0), Shard(1)]),
    "copies": ((WORLD,), None),
}
"""Shape of the mesh and placements; None for plain parameters that a group has in common."""


class Collectives(TorchDispatchMode):
    """Within it, device types of the tensors of every collective are kept, with its name."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            self.seen.append((func.overloadpacket.__name__, {x.device.type for x in tensors}))
        return func(*args, **(kwargs or {}))


def assumed(x):
    """Return what the host reads: gradients are finite; processes agree, their hashes are zero."""
    torch.ops.aten._to_copy(x, device=torch.device("cpu"))
    return torch.full(x.shape, 1 if x.dtype == torch.bool else 0, dtype=x.dtype).tolist()


@pytest.fixture(scope="module", autouse=True)
def processes():
    """One of `WORLD` processes. DTensor keeps meshes of earlier groups: it is started once."""
    dist.init_process_group("fake", rank=0, world_size=WORLD, store=FakeStore())
    yield
    mesh_of.cache_clear()
    dist.destroy_process_group()


@cache
def mesh_of(shape, place):
    """A mesh on which this process is at a place, counted row by row."""
    return DeviceMesh("cuda", torch.arange(WORLD).roll(place).view(shape))


def parameters(mesh_shape, placements, place):
    if placements is None:
        return [torch.nn.Parameter(torch.empty(shape, device="cuda")) for shape in SHAPES]
    mesh = mesh_of(mesh_shape, place)
    made = []
    for shape in SHAPES:
        local = list(shape)
        for parts, placement in zip(mesh_shape, placements, strict=True):
            if placement.is_shard():
                local[placement.dim] //= parts
        shard = torch.empty(local, device="cuda")
        made.append(torch.nn.Parameter(DTensor.from_local(shard, mesh, placements)))
    return made


def step(name, layout, place=0, policy=NonFinite.SKIP):
    """Operators and collectives of the second step, and whether it left all tensors in place."""
    mesh_shape, placements = LAYOUTS[layout]
    with fake_cuda(), mock.patch.object(FakeTensor, "tolist", assumed):
        params = parameters(mesh_shape, placements, place)
        group = dist.group.WORLD if placements is None else None
        optimizer = SpectralOptimizer(
            params,
            rule=polarlight.rules.REGISTERED[name].make(),
            weight_decay=0.1,
            executor=polarlight.Sharded(group=group),
            nonfinite=policy,
        )
        for of_group in optimizer.param_groups:  # later than its check, which reads it
            of_group["lr"] = torch.full((), 0.1, device="cuda")
        for _ in range(2):  # the first one plans
            for p in params:
                p.grad = torch.empty_like(p)
            before = addresses(optimizer)
            with Operations() as operations, Collectives() as collectives:
                optimizer.step()
        return Record(operations.operations), collectives.seen, addresses(optimizer) == before


def check(name, *arguments, **options):
    record, collectives, in_place = step(name, *arguments, **options)
    mixed = [o for o in record.operations if len(o.devices) > 1]
    # What the processes compare goes to the device and comes back, once for a mesh.
    most = 2 if not waits(name) else len(mixed)
    assert [o.operator for o in mixed] == ["_to_copy"] * most
    assert all(o.devices == {"cpu"} for o in record.operations if o.operator in WAITS)
    assert not {o.operator for o in record.operations} & SYNCHRONIZES
    assert collectives
    assert all(devices == {"cuda"} for _, devices in collectives)
    assert in_place


@pytest.mark.parametrize(
    ("name", "layout", "place"),
    [("muon", "rows", 0), ("aurora", "columns", 1), ("normuon", "copies of rows", 3)],
)
def test_a_step_stays_on_the_device_but_for_what_processes_compare(name, layout, place):
    check(name, layout, place)


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["muon", "normuon", "aurora", "polar_adamw", "soap"])
def test_every_layout_and_place_stays_on_the_device(name, layout, place):
    check(name, layout, place)


@pytest.mark.parametrize(
    "layout",
    [pytest.param(x, marks=[] if x == "rows" else [pytest.mark.slow]) for x in LAYOUTS],
)
def test_a_step_without_a_guard_compares_processes_too(layout):
    check("aurora", layout, policy=NonFinite.PROPAGATE)
