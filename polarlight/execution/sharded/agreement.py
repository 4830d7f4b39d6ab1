"""Agreement of processes on the parameters and gradients of a step, before anything moves.

On every mesh of parameters the processes reduce one vector of nine integers: hashes of the
parameters and of the set of gradients, with their minimum and maximum, and whether a gradient is
not finite. A process without gradients takes part. Where they differ, all processes raise an error
with the first parameter that differs; it is found by reducing one hash per parameter.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from polarlight.execution.param_task import Member, is_sharded
from polarlight.execution.sharded import collectives
from polarlight.execution.sharded.collectives import (
    MeshTable,
    ProcessGroup,
    ProcessMesh,
    layout_of,
)
from polarlight.execution.sharded.copies import check_copies
from polarlight.execution.sharded.plan import ShardedPlan
from polarlight.execution.sharded.specs import param_spec
from polarlight.registry import stable_text
from polarlight.rule import UpdateRule

ABSENT, PRESENT, PENDING = 0, 1, 2
"""States of a gradient; a pending one has to be reduced to its parameter's placements."""

PARAMS, GRADIENTS, COUNT, NONFINITE, TROUBLE, CHAINED, FRESH = 0, 2, 4, 5, 6, 7, 8
"""Entries of the reduced vector: two hashes, each with its negative behind it; the number of
parameters; flags. `FRESH` asks to compare copies, `TROUBLE` is 1 + the lowest rank of a mesh whose
processes disagree."""

Finite = Callable[[Sequence[int]], Tensor]
"""Members -> bool [n], whether the local part of each one's gradient is finite."""


@dataclass(slots=True)
class Roster:
    """Parameters that one mesh shares, with the texts that its processes compare.

    Attributes:
        mesh: The process mesh.
        members: Numbers of the parameters in the list of all members.
        keys: What the texts were made of.
        refs: The parameters, weakly.
        texts: One text for the library and its options, then one per parameter.
        digest: Hash of the texts.
        fresh: Whether no step was agreed on with these parameters.
    """

    mesh: ProcessMesh
    members: list[int]
    keys: list[tuple[Any, ...]] = field(default_factory=list)
    refs: list[ref[Tensor]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    digest: int = 0
    fresh: bool = True

    def is_of(self, params: Sequence[Tensor]) -> bool:
        """Return whether these are the parameters, in their order."""
        return len(params) == len(self.refs) and all(
            known() is p for known, p in zip(self.refs, params, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Agreed:
    """Members with non-finite, missing or pending gradients, as all processes found them.

    Attributes:
        nonfinite: Members whose gradient is not finite on some process.
        missing: Members without a gradient here that have one elsewhere; to be taken as zero.
        pending: Members whose gradient has to be reduced, on all processes of its mesh.
        rosters: Parameters of each mesh, in the order of collectives.
    """

    nonfinite: set[int]
    missing: list[int]
    pending: list[int]
    rosters: list[Roster]


class Agreement:
    """Comparison of parameters and gradients over the processes of each mesh."""

    def __init__(self) -> None:
        self.meshes = MeshTable()
        self._known: dict[Any, Roster] = {}

    def check(
        self,
        members: Sequence[Member],
        group: ProcessGroup | None,
        finite: Finite,
        *,
        options: str,
        missing_is_zero: bool,
    ) -> Agreed:
        """Compare parameters and gradients on every mesh; find non-finite gradients.

        Args:
            members: All trainable parameters of the optimizer, with and without gradients.
            group: Processes with equal plain parameters, if any.
            finite: Tests gradients that are not pending.
            options: Text that must be equal on all processes, besides the parameters.
            missing_is_zero: Whether a process may lack a gradient that others have.

        Raises:
            ValueError: On all processes that share a mesh, directly or over another one, if two of
                them differ.
        """
        rosters = self._rosters(members, group, options)
        states = [_gradient_state(m.parameter) for m in members]
        rows = self._reduce_all(rosters, members, states, finite, missing_is_zero)
        _raise_if_trouble(rosters, rows, members, states, missing_is_zero)
        for roster, row in zip(rosters, rows, strict=True):
            if row[FRESH]:
                check_copies([members[n] for n in roster.members], roster.mesh)
        missing: list[int] = []
        for roster, row in zip(rosters, rows, strict=True):
            if _differs(row, GRADIENTS):
                missing += _missing_members(roster, members, states)
        found: set[int] = set()
        for roster, row in zip(rosters, rows, strict=True):
            if row[NONFINITE]:
                active = [n for n in roster.members if states[n] == PRESENT]
                found |= nonfinite_members(roster, active, finite)
        pending = [n for roster in rosters for n in roster.members if states[n] == PENDING]
        return Agreed(found, missing, pending, rosters)

    def _rosters(
        self, members: Sequence[Member], group: ProcessGroup | None, options: str
    ) -> list[Roster]:
        """Return the parameters of each mesh, in an order that is equal on all processes."""
        by_key: dict[Any, Roster] = {}
        for number, member in enumerate(members):
            mesh = (
                self.meshes.of_dtensor(member.parameter)
                if is_sharded(member.parameter)
                else self.meshes.of_plain(member.parameter, group)
            )
            if mesh is not None:
                by_key.setdefault(mesh.key, Roster(mesh, [])).members.append(number)
        for key, roster in by_key.items():
            params = [members[n].parameter for n in roster.members]
            roster.keys = [(options,), *(_key(members[n]) for n in roster.members)]
            roster.refs = [ref(p) for p in params]
            known = self._known.get(key)
            if known is None or known.keys != roster.keys or not known.is_of(params):
                head = f"polarlight {_version()}, torch {torch.__version__}, {options}"
                texts = [member_text(members[n], roster.mesh) for n in roster.members]
                roster.texts = [head, *texts]
                roster.digest = hash_of("\n".join(roster.texts))
                self._known[key] = roster
            else:
                roster.texts, roster.digest, roster.fresh = known.texts, known.digest, False
        return [by_key[key] for key in sorted(by_key)]

    def _reduce_all(
        self,
        rosters: Sequence[Roster],
        members: Sequence[Member],
        states: Sequence[int],
        finite: Finite,
        missing_is_zero: bool,
    ) -> list[list[int]]:
        """All-reduce (max) hashes, states and trouble of each mesh; return rows, trouble in each.

        Trouble on one mesh is carried to the next ones, and back where no last mesh has all
        processes: none of them must wait on another mesh for one that raised.
        """
        vectors: list[Tensor] = []
        covered = _last_covers_all(tuple(roster.mesh.ranks for roster in rosters))
        for place, roster in enumerate(rosters):
            chained = place < len(rosters) - 1 and not covered
            marks = ";".join(_gradient_mark(members[n], states[n]) for n in roster.members)
            both = roster.digest, hash_of(marks)
            numbers = [both[0], -both[0], both[1], -both[1], len(roster.texts), 0, 0]
            numbers += [int(chained), int(roster.fresh)]
            vector = torch.tensor(numbers, dtype=torch.int64).to(roster.mesh.device)
            active = [n for n in roster.members if states[n] == PRESENT]
            if active:
                vector[NONFINITE] = (~finite(active)).any()
            if vectors:
                vector[TROUBLE] = vectors[-1][TROUBLE]
            collectives.reduce_max(vector, roster.mesh)
            differs = vector[PARAMS] != -vector[PARAMS + 1]
            if not missing_is_zero:
                differs |= vector[GRADIENTS] != -vector[GRADIENTS + 1]
            mark = differs * (1 + min(roster.mesh.ranks))
            vector[TROUBLE] = torch.maximum(vector[TROUBLE], mark)
            vectors.append(vector)
        rows = torch.stack([v.to(vectors[0].device) for v in vectors]).tolist() if vectors else []
        return _carry_back(rosters, rows)


@lru_cache(maxsize=64)
def _last_covers_all(ranks: tuple[tuple[int, ...], ...]) -> bool:
    """Return whether the last of several meshes has the ranks of all of them."""
    return not ranks or set().union(*ranks) <= set(ranks[-1])


def _carry_back(rosters: Sequence[Roster], rows: list[list[int]]) -> list[list[int]]:
    """Copy trouble on later meshes back to earlier ones that share processes with them."""
    trouble = rows[-1][TROUBLE] if rows else 0
    for roster, row in reversed(list(zip(rosters, rows, strict=True))):
        if row[CHAINED]:
            known = torch.tensor([max(trouble, row[TROUBLE])], device=roster.mesh.device)
            trouble = int(collectives.reduce_max(known, roster.mesh).item())
        row[TROUBLE] = max(trouble, row[TROUBLE])
    if rows:
        rows[0][TROUBLE] = max(row[TROUBLE] for row in rows)
    return rows


def _raise_if_trouble(
    rosters: Sequence[Roster],
    rows: Sequence[Sequence[int]],
    members: Sequence[Member],
    states: Sequence[int],
    missing_is_zero: bool,
) -> None:
    """Raise ValueError if any row reports that processes disagree; name the parameter."""
    if not any(row[TROUBLE] for row in rows):
        return
    messages = []
    for roster, row in zip(rosters, rows, strict=True):
        if _differs(row, PARAMS):
            messages.append(_params_message(roster.mesh, roster.texts, row[COUNT]))
        elif _differs(row, GRADIENTS) and not missing_is_zero:
            messages.append(_gradients_message(roster, members, states))
    if not messages:
        first = max(row[TROUBLE] for row in rows) - 1
        messages.append(
            f"processes disagree on the parameters or gradients of this step on a mesh that begins "
            f"with rank {first}; its processes name the parameter"
        )
    raise ValueError("\n".join(messages))


def _params_message(mesh: ProcessMesh, texts: Sequence[str], count: int) -> str:
    """Return the message for processes with different parameters, rules, views or options."""
    where, (a, rank), (b, other) = first_difference(mesh, texts, count)
    what = f"parameter {where - 1}" if where else "the library"
    return (
        f"processes disagree on the parameters of this step ({mesh}): "
        f"{what} is [{a}] on rank {rank} and [{b}] on rank {other}; nothing was changed. "
        "Every process must give its optimizer the same parameters, rules and views in the same "
        "order, with equal options and versions"
    )


def _gradients_message(roster: Roster, members: Sequence[Member], states: Sequence[int]) -> str:
    """Return the message for processes that have gradients of different parameters."""
    texts = [_gradient_text(members[n], states[n]) for n in roster.members]
    _, (a, rank), (b, other) = first_difference(roster.mesh, texts, len(texts))
    return (
        f"processes disagree on the gradients of this step ({roster.mesh}): {a} on rank {rank}, "
        f"{b} on rank {other}; nothing was changed. A parameter that has a gradient must have one "
        "on every process of its mesh. polarlight.Sharded(missing_gradients='zero') takes a "
        "missing one for zero, as of experts that saw no token"
    )


def check_plan(plan: ShardedPlan, mesh: ProcessMesh) -> None:
    """Raise ValueError on every process of a mesh unless all of them made the same plan."""
    mark = hash_of(plan.fingerprint)
    both = torch.tensor([mark, -mark, len(plan.params)], dtype=torch.int64).to(mesh.device)
    high, low, count = collectives.reduce_max(both, mesh).tolist()
    if high != -low:
        texts = [f"{plan.options}, owners {hash_of(str(plan.owners))}", *map(str, plan.params)]
        raise ValueError(_params_message(mesh, texts, count + 1))


def first_difference(
    mesh: ProcessMesh, texts: Sequence[str], count: int
) -> tuple[int, tuple[str, int], tuple[str, int]]:
    """Return the first place at which lists of texts differ, and two processes with their texts.

    One hash per place is reduced, and only the texts of that place are gathered. Every process of
    the mesh must call this.

    Args:
        mesh: The process mesh.
        texts: The list of this process.
        count: Length of the longest list.

    Returns:
        The place; (text, global rank) of the first process, and of the first that differs from it.
    """
    hashes = [hash_of(text) for text in texts] + [0] * (count - len(texts))
    both = torch.tensor([hashes, [-h for h in hashes]], dtype=torch.int64).to(mesh.device)
    high, low = collectives.reduce_max(both, mesh).tolist()
    differing = [place for place, (a, b) in enumerate(zip(high, low, strict=True)) if a != -b]
    place = differing[0] if differing else 0
    own = texts[place] if place < len(texts) else "missing"
    gathered = collectives.all_gather_object(own, mesh.group)
    other = next((rank for rank, text in enumerate(gathered) if text != gathered[0]), 0)
    return place, (gathered[0], mesh.ranks[0]), (gathered[other], mesh.ranks[other])


def _missing_members(roster: Roster, members: Sequence[Member], states: Sequence[int]) -> list[int]:
    """Return numbers of members with a gradient elsewhere, not here; every process must call this.

    Raises:
        ValueError: If another process has to reduce such a gradient together with this one.
    """
    own = [states[n] for n in roster.members]
    both = torch.tensor([own, [-s for s in own]], dtype=torch.int64).to(roster.mesh.device)
    high, low = collectives.reduce_max(both, roster.mesh).tolist()
    for n, most, least in zip(roster.members, high, low, strict=True):
        if most == PENDING and most != -least:
            raise ValueError(
                f"{members[n].name} has a gradient that is not reduced yet on some processes of "
                f"the {roster.mesh}, and another one or none on others; missing_gradients='zero' "
                "needs gradients in their parameter's placements: redistribute them before step()"
            )
    return [n for n, most in zip(roster.members, high, strict=True) if most and not states[n]]


def nonfinite_members(roster: Roster, active: Sequence[int], finite: Finite) -> set[int]:
    """Return the members with a non-finite gradient on some process; all of a mesh call this."""
    place = {number: k for k, number in enumerate(roster.members)}
    flags = torch.zeros(len(roster.members), dtype=torch.int64, device=roster.mesh.device)
    if active:
        index = torch.tensor([place[n] for n in active], device=flags.device)
        flags[index] = (~finite(active)).to(flags)
    reduced = collectives.reduce_max(flags, roster.mesh).tolist()
    return {n for n, bad in zip(roster.members, reduced, strict=True) if bad}


def member_text(member: Member, mesh: ProcessMesh) -> str:
    """Return what must be equal on all processes of a parameter: rule, view, layouts, dtypes."""
    if isinstance(member.rule, UpdateRule):
        return str(param_spec(member, mesh))
    p = member.parameter
    layout = layout_of(p, member.name) if is_sharded(p) else tuple(p.shape)
    dtypes = {name: str(x.dtype) for name, x in sorted(member.state.items())}
    return f"{member.name}: {layout} {p.dtype} {dtypes}; {_elementwise_text(member.rule)}"


def _elementwise_text(rule: object) -> str:
    """Return the text of an elementwise rule; its class alone if it has no stable text."""
    try:
        return stable_text(rule)
    except ValueError:
        return type(rule).__qualname__


def hash_of(text: str) -> int:
    """Return a hash of 62 bits, equal on every process, of which the negative fits an int64."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 2


def _key(member: Member) -> tuple[Any, ...]:
    """Return the properties that a member's text is made of, to detect changes cheaply."""
    p = member.parameter
    placed = (p.placements, p.device_mesh) if is_sharded(p) else ()  # type: ignore[attr-defined]
    return member.name, member.rule, member.view, p.dtype, p.shape, *placed


def _differs(row: Sequence[int], entry: int) -> bool:
    """Return True if the hash at this entry of the reduced vector differs between processes."""
    return row[entry] != -row[entry + 1]


def _gradient_state(parameter: Any) -> int:
    """Return ABSENT, PRESENT, or PENDING if the gradient must still be reduced."""
    if parameter.grad is None or not parameter.numel():
        return ABSENT
    pending = is_sharded(parameter) and parameter.grad.placements != parameter.placements
    return PENDING if pending else PRESENT


def _gradient_mark(member: Member, state: int) -> str:
    """Return the state of a gradient as text; of a pending one with its placements."""
    gradient: Any = member.parameter.grad
    return f"{state}{gradient.placements}" if state == PENDING else str(state)


def _gradient_text(member: Member, state: int) -> str:
    """Return `name has a gradient`, `... no gradient` or its placements, for messages."""
    gradient: Any = member.parameter.grad
    how = {ABSENT: "no gradient", PRESENT: "a gradient"}.get(state)
    return f"{member.name} has {how or f'a gradient in placements {gradient.placements}'}"


def _version() -> str:
    """Return polarlight's version."""
    return str(getattr(sys.modules[__name__.partition(".")[0]], "__version__", "unknown"))
