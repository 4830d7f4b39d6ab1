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
    try:
        rule = stable_text(member.rule)
    except ValueError:  # an elementwise rule without a stable text
        rule = type(member.rule).__qualname__
    return f"{member.name}: {layout} {p.dtype} {dtypes}; {rule}"


def gradient_states(params: Sequence[Any]) -> list[int]:
    """Return per gradient ABSENT (also if empty), PENDING if its placements differ, or PRESENT."""
    states = []
    for p in params:
        gradient, spec = p.grad, getattr(p, "_spec", None)  # a DTensor has a specification
        if gradient is None or (not p.numel() if spec is None else 0 in spec.shape):
            states.append(ABSENT)
        elif spec is None or gradient._spec is spec or gradient.placements == p.placements:
            states.append(PRESENT)  # `fully_shard` gives gradient and parameter one specification
        else:
            states.append(PENDING)
    return states


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
    """Return a hash of numbers, equal on every process; cached, as steps repeat."""
    return hash_of(";".join(map(str, numbers)))


def check_plan(plan: ShardedPlan, mesh: ProcessMesh) -> None:
    """Compare a plan over its mesh, by all-reduce; raise ValueError everywhere if plans differ."""
    mark = hash_of(plan.fingerprint)
    both = torch.tensor([mark, -mark, len(plan.params)], dtype=torch.int64).to(mesh.device)
    high, low, count = collectives.reduce_max(both, mesh).tolist()
    if high != -low:
        options, placed, owned = plan.fingerprint_texts
        head = f"{options}, mesh and other loads {hash_of(placed)}, owners {hash_of(owned)}"
        texts = [head, *map(str, plan.params)]
        raise ValueError(params_message(mesh, texts, count + 1))


def params_message(mesh: ProcessMesh, texts: Sequence[str], most_texts: int) -> str:
    """Return the error message on the first text that differs over a mesh; a collective."""
    where, (a, rank), (b, other) = first_difference(mesh, texts, most_texts)
    what = f"parameter {where - 1}" if where else "the library"
    return (
        f"processes disagree on the parameters of this step ({mesh}): "
        f"{what} is [{a}] on rank {rank} and [{b}] on rank {other}; nothing was changed. "
        "Every process must give its optimizer the same parameters, rules and views in the same "
        "order, with equal options and versions"
    )


def gradients_message(mesh: ProcessMesh, members: Sequence[Member], states: Sequence[int]) -> str:
    """Return the error message on the first gradient that differs over a mesh; a collective."""
    texts = []
    for m, state in zip(members, states, strict=True):
        gradient: Any = m.parameter.grad
        how = {ABSENT: "no gradient", PRESENT: "a gradient"}.get(state)
        texts.append(f"{m.name} has {how or f'a gradient in placements {gradient.placements}'}")
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
    """All-gather checksums of replicated matrices; raise ValueError everywhere if copies differ.

    One checksum per replicated parameter and process is gathered. Every process must call this.
    """
    replicated = []
    for m in members:
        if isinstance(m.rule, UpdateRule):
            p = m.parameter
            layout = layout_of(p, m.name) if is_sharded(p) else replicated_layout(p.shape, mesh)
            if layout.copies > 1:
                replicated.append((m, layout))
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
