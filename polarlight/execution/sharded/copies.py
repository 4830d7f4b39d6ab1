"""Check that copies of a replicated parameter are equal, once, before they share their directions.

The owner of a matrix computes one direction for all copies. Where these differ (models that were
not broadcast, plain shards of another engine), each would move by the direction of another one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from polarlight.execution.param_task import Member, is_sharded, to_local
from polarlight.execution.sharded import collectives
from polarlight.execution.sharded.collectives import ProcessMesh, layout_of, replicated_layout
from polarlight.execution.sharded.layouts import Layout
from polarlight.rule import UpdateRule

CHUNK = 2**22
"""Entries of which a checksum is formed at once."""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_copies(members: Sequence[Member], mesh: ProcessMesh) -> None:
    """Raise ValueError, on all processes of a mesh, if copies of a matrix parameter differ.

    One checksum per replicated parameter and process is gathered. Every process must call this.
    """
    replicated = [
        (m, layout)
        for m in members
        if isinstance(m.rule, UpdateRule) and (layout := _layout(m, mesh)).copies > 1
    ]
    if not replicated:
        return
    own = torch.stack([checksum(to_local(m.parameter)) for m, _ in replicated])
    sums = collectives.gather_equal(own.to(mesh.device), mesh).tolist()  # [processes, parameters]
    for place, (member, layout) in enumerate(replicated):
        first: dict[tuple[int, ...], int] = {}
        for rank, where in enumerate(mesh.coordinates):
            cut = tuple(c for c, split in zip(where, layout.splits, strict=True) if split)
            other = first.setdefault(cut, rank)
            if sums[rank][place] != sums[other][place]:
                raise ValueError(
                    f"{member.name} is replicated over the {mesh}, and its values differ between "
                    f"rank {mesh.ranks[other]} and rank {mesh.ranks[rank]}; nothing was changed. "
                    "Copies move by one direction and must start equal: broadcast the weights, or "
                    "if they are shards of one matrix make them DTensors with Shard(dim)"
                )


def checksum(x: Tensor) -> Tensor:
    """Return a checksum int64 [] of a tensor's bits that depends on their order."""
    bits = x.detach().contiguous().view(-1).view(_BITS[x.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    for chunk in bits.split(CHUNK):
        weights = torch.arange(1, len(chunk) + 1, device=x.device)  # [len(chunk)], int64
        total = total * 1000003 + (chunk * weights).sum()  # overflow wraps around
    return total


def _layout(member: Member, mesh: ProcessMesh) -> Layout:
    """Return the layout of a parameter on its mesh."""
    p = member.parameter
    return layout_of(p, member.name) if is_sharded(p) else replicated_layout(p.shape, mesh)
