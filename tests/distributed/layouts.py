"""Small models of bare parameters, laid out in every way that PyTorch has."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from tests.releases import UNEVEN_STRIDED_SHARDS

SHAPES = [(12, 4), (4, 12), (6, 6), (3, 12, 4), (10, 5), (1, 4), (12, 4)]
"""Uneven and empty shards among them: ten rows on four processes, one row on any."""

LAYOUTS = {
    2: {
        "rows": ((2,), [Shard(0)]),
        "columns": ((2,), [Shard(1)]),
        "copies": ((2,), [Replicate()]),
    },
    4: {
        "rows": ((4,), [Shard(0)]),
        "columns": ((4,), [Shard(1)]),
        "copies": ((4,), [Replicate()]),
        "HSDP": ((2, 2), [Replicate(), Shard(0)]),
        "FSDP x TP, rows": ((2, 2), [_StridedShard(0, split_factor=2), Shard(0)]),
        "FSDP x TP, columns": ((2, 2), [Shard(0), Shard(1)]),
        "TP beside copies": ((2, 2), [Shard(1), Replicate()]),
        "rows, twice": ((2, 2), [Shard(0), Shard(0)]),
    },
}
"""By number of processes: the mesh, and the placements of every parameter."""
if not UNEVEN_STRIDED_SHARDS:
    del LAYOUTS[4]["FSDP x TP, rows"]


class Parameters(nn.Module):
    """Named parameters with seeded values, whole or on a mesh."""

    def __init__(self, dtype, mesh=None, placements=None, shapes=SHAPES):
        super().__init__()
        for i, shape in enumerate(shapes):
            values = torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(dtype)
            if mesh is not None:
                values = distribute_tensor(values, mesh, placements, src_data_rank=None)
            self.register_parameter(f"p{i}", nn.Parameter(values))


def models(dtype, layout, shapes=SHAPES):
    """The whole model, and the same one on a mesh."""
    sizes, placements = layout
    mesh = init_device_mesh("cpu", sizes)
    return Parameters(dtype, shapes=shapes), Parameters(dtype, mesh, placements, shapes)
