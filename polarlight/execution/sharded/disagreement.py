"""Comparisons of processes before a step: texts, with the first one that differs, and copies.

The owner of a matrix computes one direction for all copies. Where these differ (models that were
not broadcast, plain shards of another engine), each would move by the direction of another one.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from polarlight.execution.param_task import Member, is_sharded, to_local
from polarlight.execution.sharded import collectives
from polarlight.execution.sharded.collectives import ProcessMesh, layout_of, replicated_layout
from polarlight.execution.sharded.layouts import Layout
from polarlight.execution.sharded.plan import ShardedPlan
from polarlight.execution.sharded.specs import param_spec
from polarlight.registry import stable_text
from polarlight.rule import UpdateRule

CHUNK = 2**22
"""Entries of which a checksum is formed at once."""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

ABSENT, PRESENT, PENDING = 0, 1, 2
"""States of a gradient; a pending one has to be reduced to its parameter's placements."""


def hash_of(text: str) -> int:
    """Return a hash of 62 bits, equal on every process, of which the negative fits an int64."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 2


def member_text(member: Member, mesh: ProcessMesh) -> str:
    """Return text that must be equal on all processes: name, rule, view, layouts and dtypes."""
    if isinstance(member.rule, UpdateRule):
        return str(param_spec(member, mesh))
    p = member.parameter
    layout = layout_of(p, member.name) if is_sharded(p) else tuple(p.shape)
    dtypes = {name: str(x.dtype) for name, x in sorted(member.state.items())}
    return f"{member.name}: {layout} {p.dtype} {dtypes}; {_elementwise_text(member.rule)}"


def _elementwise_text(rule: object) -> str:
    """Return the stable text of an elementwise rule; its class name if it has none."""
    try:
        return stable_text(rule)
    except ValueError:
        return type(rule).__qualname__


def gradient_states(params: Sequence[Any]) -> list[int]:
    """Return each parameter's ABSENT (also if empty), PENDING if placed otherwise, or PRESENT."""
    return [_gradient_state(p, p.grad) for p in params]


def _gradient_state(parameter: Any, gradient: Any) -> int:
    """Return ABSENT (also if the parameter is empty), PENDING if placed otherwise, or PRESENT."""
    if gradient is None:
        return ABSENT
    if (spec := getattr(parameter, "_spec", None)) is None:  # no DTensor
        return PRESENT if parameter.numel() else ABSENT
    if 0 in spec.shape:
        return ABSENT
    # `fully_shard` gives both one specification.
    same = gradient._spec is spec or gradient.placements == parameter.placements
    return PRESENT if same else PENDING


def hash_of_states(
    members: Sequence[Member], states: Sequence[int], member_numbers: Sequence[int]
) -> int:
    """Return a hash of these members' gradient states, and of placements of pending ones."""
    of_members = tuple([states[n] for n in member_numbers])
    if PENDING not in of_members:
        return _hash_of_numbers(of_members)
    marks = list(map(str, of_members))
    for k, n in enumerate(member_numbers):
        if of_members[k] == PENDING:
            gradient: Any = members[n].parameter.grad
            marks[k] += str(gradient.placements)
    return hash_of(";".join(marks))


@lru_cache(maxsize=64)
def _hash_of_numbers(numbers: tuple[int, ...]) -> int:
    """Return a hash of numbers, equal on every process."""
    return hash_of(";".join(map(str, numbers)))


def _gradient_text(member: Member, state: int) -> str:
    """Return a clause for messages: `name has a gradient`, no gradient, or its placements."""
    gradient: Any = member.parameter.grad
    how = {ABSENT: "no gradient", PRESENT: "a gradient"}.get(state)
    return f"{member.name} has {how or f'a gradient in placements {gradient.placements}'}"


def check_plan(plan: ShardedPlan, mesh: ProcessMesh) -> None:
    """Compare a plan over its mesh, by all-reduce; raise ValueError everywhere if plans differ."""
    mark = hash_of(plan.fingerprint)
    both = torch.tensor([mark, -mark, len(plan.params)], dtype=torch.int64).to(mesh.device)
    high, low, count = collectives.reduce_max(both, mesh).tolist()
    if high != -low:
        options, placed, owned = plan.fixed
        head = f"{options}, mesh and other loads {hash_of(placed)}, owners {hash_of(owned)}"
        texts = [head, *map(str, plan.params)]
        raise ValueError(params_message(mesh, texts, count + 1))


def params_message(mesh: ProcessMesh, texts: Sequence[str], most_texts: int) -> str:
    """Return the message on the first difference of these lists of texts; a collective."""
    where, (a, rank), (b, other) = first_difference(mesh, texts, most_texts)
    what = f"parameter {where - 1}" if where else "the library"
    return (
        f"processes disagree on the parameters of this step ({mesh}): "
        f"{what} is [{a}] on rank {rank} and [{b}] on rank {other}; nothing was changed. "
        "Every process must give its optimizer the same parameters, rules and views in the same "
        "order, with equal options and versions"
    )


def gradients_message(mesh: ProcessMesh, members: Sequence[Member], states: Sequence[int]) -> str:
    """Return the message on the first gradient state that differs; a collective on `mesh`."""
    texts = [_gradient_text(m, state) for m, state in zip(members, states, strict=True)]
    _, (a, rank), (b, other) = first_difference(mesh, texts, len(texts))
    return (
        f"processes disagree on the gradients of this step ({mesh}): {a} on rank {rank}, "
        f"{b} on rank {other}; nothing was changed. A parameter that has a gradient must have one "
        "on every process of its mesh. polarlight.Sharded(missing_gradients='zero') takes a "
        "missing one for zero, as of experts that saw no token"
    )


def first_difference(
    mesh: ProcessMesh, texts: Sequence[str], most_texts: int
) -> tuple[int, tuple[str, int], tuple[str, int]]:
    """Return the first index where processes' texts differ, with two (text, rank); a collective.

    One hash per place is reduced, and only the texts of that place are gathered. Every process of
    the mesh must call this.

    Args:
        mesh: The process mesh.
        texts: The list of this process.
        most_texts: Length of the longest list of a process.

    Returns:
        The place; (text, global rank) of the first process, and of the first that differs from it.
    """
    hashes = [hash_of(text) for text in texts] + [0] * (most_texts - len(texts))
    both = torch.tensor([hashes, [-h for h in hashes]], dtype=torch.int64).to(mesh.device)
    high, low = collectives.reduce_max(both, mesh).tolist()
    differing = [place for place, (a, b) in enumerate(zip(high, low, strict=True)) if a != -b]
    place = differing[0] if differing else 0
    own = texts[place] if place < len(texts) else "missing"
    gathered = collectives.all_gather_object(own, mesh.group)
    other = next((rank for rank, text in enumerate(gathered) if text != gathered[0]), 0)
    return place, (gathered[0], mesh.ranks[0]), (gathered[other], mesh.ranks[other])


def check_copies(members: Sequence[Member], mesh: ProcessMesh) -> None:
    """Compare replicated matrices by checksum, a collective; raise ValueError if copies differ.

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
    """Return a parameter's layout; a plain one is replicated on all of `mesh`."""
    p = member.parameter
    return layout_of(p, member.name) if is_sharded(p) else replicated_layout(p.shape, mesh)
