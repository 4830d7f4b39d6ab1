"""Which gradients are finite: on their device, for the host, or on all processes together."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polarlight.execution.sharded import collectives
from polarlight.execution.work import gradient_of, is_sharded
from polarlight.linalg import foreach
from polarlight.optimizer.param_groups import Group
from polarlight.rule import UpdateRule


def in_memory(device: torch.device) -> bool:
    """Whether the host can read the device's tensors without waiting, here and now."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def by_device(
    params: Sequence[Tensor], places: Sequence[int]
) -> Iterator[tuple[torch.device, list[int], list[Tensor]]]:
    """Per device, the places on it and the gradients there."""
    found: dict[torch.device, tuple[list[int], list[Tensor]]] = {}
    for i in places:
        if params[i].grad is not None:
            gradient = gradient_of(params[i])
            device = gradient.device
            if device not in found:
                found[device] = ([], [])
            found[device][0].append(i)
            found[device][1].append(gradient)
    for device, (here, gradients) in found.items():
        yield device, here, gradients


def known_finite(gradients: Sequence[Tensor], squares: bool) -> list[bool]:
    """What `are_finite` says, for the host to know; one transfer."""
    if in_memory(gradients[0].device) and not squares:
        # A finite sum has finite terms, and is the cheapest to have; a sum may also overflow.
        sums = torch.stack([foreach.as_plain(g.sum()) for g in gradients]).tolist()
        if all(map(math.isfinite, sums)):
            return [True] * len(gradients)
    return list(are_finite(gradients, squares).tolist())


def are_finite(gradients: Sequence[Tensor], squares: bool) -> Tensor:
    """Whether each gradient has only finite entries, bool [len(gradients)]; all on one device.

    With `squares`, whether the sum of their squares is finite as well.
    """
    if squares:
        norms = [torch.linalg.vector_norm(g, dtype=_wide(g)) for g in gradients]
        return torch.stack([foreach.as_plain(norm) for norm in norms]).isfinite()
    on_gpu = gradients[0].device.type == "cuda" and foreach.have_kernels(gradients)
    if on_gpu and all(g.numel() for g in gradients):
        return torch.stack(torch._foreach_norm(list(gradients), float("inf"))).isfinite()
    return torch.stack([foreach.as_plain(g.isfinite().all()) for g in gradients])


def _wide(x: Tensor) -> torch.dtype:
    """The dtype in which statistics of `x` are kept."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


Place = tuple[int, int]
"""Index of a group, and place in it."""


def bad_everywhere(groups: Sequence[Group], members: Mapping[int, list[int]]) -> set[Place]:
    """Sharded parameters with a gradient that is not finite on some process of their mesh.

    One number per mesh is exchanged; only where it says that there are any, one per parameter.
    """
    meshes: dict[Any, list[Place]] = {}
    for index, group in enumerate(groups):
        for place, p in enumerate(group["params"]):
            if is_sharded(p):
                meshes.setdefault(p.device_mesh, []).append((index, place))
    if not meshes:
        return set()
    mine = {
        (index, place)
        for index, places in members.items()
        for place in known_bad(
            groups[index], [i for i in places if is_sharded(groups[index]["params"][i])]
        )
    }
    found: set[Place] = set()
    for mesh, places in meshes.items():
        flags = torch.tensor([place in mine for place in places], dtype=torch.int32)
        if collectives.largest(flags.max(), mesh).item():
            anywhere = collectives.largest(flags, mesh).tolist()
            found.update(place for place, bad in zip(places, anywhere, strict=True) if bad)
    return found


def known_bad(group: Group, places: Sequence[int]) -> list[int]:
    """The places whose gradients are not finite here, for the host to know."""
    squares = not isinstance(group["rule"], UpdateRule)
    return [
        place
        for _, here, gradients in by_device(group["params"], places)
        for place, ok in zip(here, known_finite(gradients, squares), strict=True)
        if not ok
    ]
