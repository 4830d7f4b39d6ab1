"""Agreement of processes on the parameters and gradients of a step, before anything moves.

On every mesh of parameters the processes reduce one vector of ten integers: hashes of the
parameters and of the set of gradients, with their minimum and maximum, and the rank of a process
with a non-finite gradient. A process without gradients takes part. Where hashes differ, all
processes raise an error with the first parameter that differs; it is found by reducing one hash
per parameter. The host reads the vectors of all meshes in one transfer.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
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
)
from polarlight.execution.sharded.disagreement import (
    PENDING,
    PRESENT,
    check_copies,
    gradient_states,
    gradients_message,
    hash_of,
    hash_of_states,
    member_text,
    params_message,
)

PARAMS, GRADIENTS, COUNT, NONFINITE, CHAINED, FRESH, TROUBLE, REFUSED = 0, 2, 4, 5, 6, 7, 8, 9
"""Entries of the reduced vector: two hashes, each with its negative behind it; the number of
parameters; 1 + a rank whose gradient is not finite; flags. `FRESH` asks to compare copies.
`TROUBLE` is 1 + the lowest rank of a mesh whose processes disagree, `REFUSED` is 1 + a rank whose
gradient has to raise an error; both are carried to the processes of other meshes."""

CARRIED = slice(TROUBLE, REFUSED + 1)

FiniteMaskOf = Callable[[Sequence[int]], Tensor]
"""Members -> bool [n], whether the local part of each one's gradient is finite."""


@dataclass(slots=True)
class Roster:
    """Parameters that one mesh shares, with the texts that its processes compare.

    Attributes:
        mesh: The process mesh.
        members: Numbers of the parameters in the list of all members.
        first_rank: Lowest global rank of the mesh.
        texts: One text for the library and its options, then one per parameter.
        digest: Hash of the texts.
        fresh: Whether no step was agreed on with these parameters.
        chained: Whether a process of the mesh waits for what processes of later meshes report.
    """

    mesh: ProcessMesh
    members: list[int]
    first_rank: int
    texts: list[str] = field(default_factory=list)
    digest: int = 0
    fresh: bool = True
    chained: bool = False


@dataclass(frozen=True, slots=True)
class GradientStatus:
    """Gradients that are non-finite, missing or pending, as all processes of a mesh found them.

    Attributes:
        nonfinite: Members whose gradient is not finite on some process, with the rank of one.
        missing: Members without a gradient here that have one elsewhere; to be taken as zero.
        pending: Members whose gradient has to be reduced, on all processes of its mesh.
        rosters: Parameters of each mesh, in the order of collectives; the same list as in the step
            before if these are the same.
        raise_for_rank: Rank of a process with a non-finite gradient for which all have to raise an
            error; None if there is none.
    """

    nonfinite: dict[int, int]
    missing: list[int]
    pending: list[int]
    rosters: list[Roster]
    raise_for_rank: int | None


class Agreement:
    """Comparison of parameters and gradients over the processes of each mesh."""

    def __init__(self) -> None:
        """Start without meshes or parameters that were compared before."""
        self.meshes = MeshTable()
        self._known: dict[Any, Roster] = {}
        # The parameters of the last step, what could change about them, and their rosters.
        self._last: tuple[list[ref[Tensor]], list[tuple[Any, ...]], list[Roster]] = [], [], []

    def ranks(self) -> set[int]:
        """Return the global ranks of all meshes compared so far, this process's own included."""
        return {rank for roster in self._known.values() for rank in roster.mesh.ranks}

    def check(
        self,
        members: Sequence[Member],
        group: ProcessGroup | None,
        finite: FiniteMaskOf,
        *,
        options: str,
        missing_is_zero: bool,
        nonfinite_raises: bool = False,
        unshared_nonfinite: bool = False,
    ) -> GradientStatus:
        """Compare members and gradients over each mesh (all-reduce); ValueError if they differ.

        Args:
            members: All trainable parameters of the optimizer, with and without gradients.
            group: Processes with equal plain parameters, if any.
            finite: Tests gradients that are not pending.
            options: Text that must be equal on all processes, besides the parameters.
            missing_is_zero: Whether a process may lack a gradient that others have.
            nonfinite_raises: Whether a non-finite gradient is an error on all processes, which
                the caller raises.
            unshared_nonfinite: Whether `nonfinite_raises`, and a gradient that no other process
                shares is not finite here.

        Raises:
            ValueError: On all processes that share a mesh, directly or over another one, if two of
                them differ.
        """
        rosters = self._rosters(members, group, options)
        states = gradient_states([m.parameter for m in members])
        vectors = _reduce_all(
            rosters,
            members,
            states,
            finite,
            missing_is_zero=missing_is_zero,
            nonfinite_raises=nonfinite_raises,
            unshared_nonfinite=unshared_nonfinite,
        )
        reports = _report_to_earlier_meshes(rosters, vectors)
        _raise_if_trouble(rosters, reports, members, states, missing_is_zero)
        for roster, report in zip(rosters, reports, strict=True):
            if report[FRESH]:
                check_copies([members[n] for n in roster.members], roster.mesh)
            roster.fresh = False
        missing: list[int] = []
        for roster, report in zip(rosters, reports, strict=True):
            if _hash_differs(report, GRADIENTS):
                missing += _missing_members(roster, members, states)
        found: dict[int, int] = {}
        for roster, report in zip(rosters, reports, strict=True):
            if report[NONFINITE]:
                active = [n for n in roster.members if states[n] == PRESENT]
                found |= nonfinite_members(roster, active, finite)
        pending = [n for roster in rosters for n in roster.members if states[n] == PENDING]
        refused = max((report[REFUSED] for report in reports), default=0)
        return GradientStatus(found, missing, pending, rosters, refused - 1 if refused else None)

    def _rosters(
        self, members: Sequence[Member], group: ProcessGroup | None, options: str
    ) -> list[Roster]:
        """Return each mesh's parameters; the last step's list if nothing has changed."""
        params: list[Any] = [m.parameter for m in members]
        # What could change about a member; a DTensor's specification (placements and mesh) is the
        # same object in the next step.
        keys = [
            (options, group),
            *[
                (m.name, m.rule, m.view, p.dtype, p._spec if is_sharded(p) else p.shape)
                for m, p in zip(members, params, strict=True)
            ],
        ]
        refs, known_keys, rosters = self._last
        if keys == known_keys and all([x() is p for x, p in zip(refs, params, strict=True)]):
            return rosters
        rosters = self._new_rosters(members, group, options)
        self._last = [ref(p) for p in params], keys, rosters
        return rosters

    def _new_rosters(
        self, members: Sequence[Member], group: ProcessGroup | None, options: str
    ) -> list[Roster]:
        """Return a new `Roster` per mesh, sorted by mesh; makes unknown meshes (a collective)."""
        by_key: dict[Any, Roster] = {}
        for number, member in enumerate(members):
            mesh = (
                self.meshes.of_dtensor(member.parameter)
                if is_sharded(member.parameter)
                else self.meshes.of_plain(member.parameter, group)
            )
            if mesh is not None:
                if mesh.key not in by_key:
                    by_key[mesh.key] = Roster(mesh, [], min(mesh.ranks))
                by_key[mesh.key].members.append(number)
        version = getattr(sys.modules[__name__.partition(".")[0]], "__version__", "unknown")
        head = f"polarlight {version}, torch {torch.__version__}, {options}"
        for key, roster in by_key.items():
            roster.texts = [head, *(member_text(members[n], roster.mesh) for n in roster.members)]
            roster.digest = hash_of("\n".join(roster.texts))
            roster.chained = key in self._known and self._known[key].chained
            self._known[key] = roster
        return [by_key[key] for key in sorted(by_key)]


def _reduce_all(
    rosters: Sequence[Roster],
    members: Sequence[Member],
    states: Sequence[int],
    finite: FiniteMaskOf,
    *,
    missing_is_zero: bool,
    nonfinite_raises: bool,
    unshared_nonfinite: bool,
) -> list[Tensor]:
    """Return one int64 [10] per mesh, all-reduced (max); carry disagreements to later meshes.

    A disagreement on one mesh is carried to the next ones: no process must wait on another mesh
    for one that raised.
    """
    vectors: list[Tensor] = []
    covered = _last_covers_all(tuple(roster.mesh.ranks for roster in rosters))
    for place, roster in enumerate(rosters):
        chained = place < len(rosters) - 1 and not covered
        both = roster.digest, hash_of_states(members, states, roster.members)
        here = 1 + roster.mesh.ranks[roster.mesh.rank]
        numbers = [both[0], -both[0], both[1], -both[1], len(roster.texts), 0]
        numbers += [int(chained), int(roster.fresh), 0, here * unshared_nonfinite]
        vector = torch.tensor(numbers, dtype=torch.int64).to(roster.mesh.device)
        active = [n for n in roster.members if states[n] == PRESENT]
        if active:
            vector[NONFINITE] = (~finite(active)).any() * here
            if nonfinite_raises:
                vector[REFUSED] = torch.maximum(vector[REFUSED], vector[NONFINITE])
        if vectors:
            before = vectors[-1][CARRIED].to(vector.device)
            vector[CARRIED] = torch.maximum(vector[CARRIED], before)
        collectives.reduce_max(vector, roster.mesh)
        end = GRADIENTS if missing_is_zero else GRADIENTS + 2
        differs = (vector[PARAMS:end:2] != -vector[PARAMS + 1 : end : 2]).any()
        vector[TROUBLE] = torch.maximum(vector[TROUBLE], differs * (1 + roster.first_rank))
        vectors.append(vector)
    return vectors


@lru_cache(maxsize=64)
def _last_covers_all(ranks_of_meshes: tuple[tuple[int, ...], ...]) -> bool:
    """Return whether the ranks of the last mesh include those of all the meshes."""
    return not ranks_of_meshes or set().union(*ranks_of_meshes) <= set(ranks_of_meshes[-1])


def _report_to_earlier_meshes(
    rosters: Sequence[Roster], vectors: Sequence[Tensor]
) -> list[list[int]]:
    """Carry disagreements to earlier meshes by all-reduce; set `chained`; return vectors as lists.

    Where the last mesh does not have all processes, processes of earlier meshes wait for it. Which
    meshes have such processes is known from the step before; in the first step the host reads it.
    """
    if not vectors:
        return []
    _propagate_backwards(rosters, vectors, [roster.chained for roster in rosters])
    reports = _to_lists(vectors)
    both = list(zip(rosters, reports, strict=True))
    new = [report[CHAINED] and not roster.chained for roster, report in both]
    for roster, report in both:
        roster.chained = bool(report[CHAINED])
    if any(new):
        _propagate_backwards(rosters, vectors, new)
        reports = _to_lists(vectors)
    return reports


def _propagate_backwards(
    rosters: Sequence[Roster], vectors: Sequence[Tensor], chained: Sequence[int | bool]
) -> None:
    """Set each vector's `CARRIED` to the maximum of it and later ones; all-reduce if `chained`."""
    if not any(chained):
        return
    carried = vectors[-1][CARRIED]
    for place in reversed(range(len(vectors))):
        vector, mesh = vectors[place], rosters[place].mesh
        carried = torch.maximum(vector[CARRIED], carried.to(vector.device))
        if chained[place]:
            collectives.reduce_max(carried, mesh)
        vector[CARRIED] = carried


def _to_lists(vectors: Sequence[Tensor]) -> list[list[int]]:
    """Return int64 vectors of equal length as lists; one transfer to the host for all."""
    found: list[list[int]] = torch.stack([v.to(vectors[0].device) for v in vectors]).tolist()
    return found


def _raise_if_trouble(
    rosters: Sequence[Roster],
    reports: Sequence[Sequence[int]],
    members: Sequence[Member],
    states: Sequence[int],
    missing_is_zero: bool,
) -> None:
    """Raise ValueError with the first difference, found by collectives, if a report shows one."""
    if not any(report[TROUBLE] for report in reports):
        return
    messages = []
    for roster, report in zip(rosters, reports, strict=True):
        if _hash_differs(report, PARAMS):
            messages.append(params_message(roster.mesh, roster.texts, report[COUNT]))
        elif _hash_differs(report, GRADIENTS) and not missing_is_zero:
            own = [members[n] for n in roster.members]
            states_here = [states[n] for n in roster.members]
            messages.append(gradients_message(roster.mesh, own, states_here))
    if not messages:
        first = max(report[TROUBLE] for report in reports) - 1
        messages.append(
            f"processes disagree on the parameters or gradients of this step on a mesh that begins "
            f"with rank {first}; its processes name the parameter"
        )
    raise ValueError("\n".join(messages))


def _missing_members(roster: Roster, members: Sequence[Member], states: Sequence[int]) -> list[int]:
    """Return numbers of members that lack a gradient which another process has, by all-reduce.

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


def nonfinite_members(
    roster: Roster, active: Sequence[int], finite: FiniteMaskOf
) -> dict[int, int]:
    """Return {member number: rank with a non-finite gradient} over a mesh, by all-reduce.

    Args:
        roster: The parameters of the mesh.
        active: Numbers of those that have a gradient to be tested here.
        finite: Tests them.
    """
    place = {number: k for k, number in enumerate(roster.members)}
    flags = torch.zeros(len(roster.members), dtype=torch.int64, device=roster.mesh.device)
    if active:
        index = torch.tensor([place[n] for n in active], device=flags.device)
        here = 1 + roster.mesh.ranks[roster.mesh.rank]
        flags[index] = (~finite(active)).to(flags) * here
    reduced = collectives.reduce_max(flags, roster.mesh).tolist()
    return {n: bad - 1 for n, bad in zip(roster.members, reduced, strict=True) if bad}


def _hash_differs(report: Sequence[int], entry: int) -> bool:
    """Return whether hashes differ: `report[entry]` is the largest, the next minus the least."""
    return report[entry] != -report[entry + 1]
