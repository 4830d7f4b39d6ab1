"""Many tensors in one, so that an operator runs once on all of them.

A stack is a tensor [b, *shape], whose parts are tensors of one shape. Parts are views: what is
written to a part is written to the stack. Where tensors are already consecutive parts of a tensor,
nothing is copied to stack them.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from polarlight.linalg import foreach


def by_kind(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Return the positions of tensors with equal dtype and device, in order."""
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, x in enumerate(tensors):
        kinds.setdefault((x.dtype, x.device), []).append(i)
    return list(kinds.values())


def flat_copy(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Copy tensors of one dtype and device into a vector; return it and its parts, in order."""
    sizes = [x.numel() for x in tensors]
    flat = torch.empty(sum(sizes), dtype=tensors[0].dtype, device=tensors[0].device)
    parts = parts_of(flat, tensors)
    foreach.copy_(parts, list(tensors))
    return flat, parts


def parts_of(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return the parts of a vector as views, in the shapes of the tensors in it."""
    parts = flat.split([x.numel() for x in like])
    return [part.view(x.shape) for part, x in zip(parts, like, strict=True)]


def clone_together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return contiguous clones, one launch per dtype and device, equal shapes side by side.

    `stack_of` finds a stack in the clones of equal shape, in the order in which they were given.
    """
    if torch.compiler.is_compiling():  # the compiler fuses launches by itself
        return [x.clone() for x in tensors]
    found: dict[int, Tensor] = {}
    for positions in by_kind(tensors):
        # Large ones first: they start at multiples of what products want to be aligned to.
        positions.sort(key=lambda i: (-tensors[i].numel(), tensors[i].shape))
        found.update(zip(positions, flat_copy([tensors[i] for i in positions])[1], strict=True))
    return [found[i] for i in range(len(tensors))]


def stack_of(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the stack [b, *shape] of which these are all parts, in order; None if there is none.

    It is a view: writing to it writes to the tensors.
    """
    first = tensors[0]
    base = first._base
    if base is None or torch.compiler.is_compiling():
        return None
    shape, strides, offset = first.shape, first.stride(), first.storage_offset()
    step = prod(shape)
    for i, x in enumerate(tensors):
        if x._base is not base or x.shape != shape or x.stride() != strides:
            return None
        if x.storage_offset() != offset + i * step:
            return None
    return base.as_strided((len(tensors), *shape), (step, *strides), offset)


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Return the stack of which these are parts, or a new one with copies; only to be read."""
    found = stack_of(tensors)
    return torch.stack(list(tensors)) if found is None else found


def as_column(x: Tensor, ndim: int) -> Tensor:
    """Return a vector [b] as [b, 1, ..., 1], to be combined with a stack of `ndim`-dim tensors."""
    return x.view(-1, *[1] * ndim)


def to_devices_of(tensors: Sequence[Tensor], scalars: Sequence[Tensor]) -> list[Tensor]:
    """Return scalars [] of one device and dtype, each on the device of its tensor.

    Those that go to one device are copied there together: from an accelerator to the host every
    copy is a wait.
    """
    found = list(scalars)
    for device in dict.fromkeys(x.device for x in tensors):
        away = [i for i, x in enumerate(tensors) if x.device == device != scalars[i].device]
        if away:
            moved = torch.stack([scalars[i] for i in away]).to(device).unbind()
            for i, scalar in zip(away, moved, strict=True):
                found[i] = scalar
    return found
