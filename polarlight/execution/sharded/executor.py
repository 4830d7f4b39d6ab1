"""Directions of parameters that are spread over processes: the values of one device.

Every matrix has one owner. Shards of its momentum travel there, whatever the layout, and shards of
the direction travel back; nothing is gathered to all, and nothing is computed twice. Buffers lie
beside the parameters and travel with their matrix. While one bucket of matrices is computed, the
next one comes in and the last one's directions go out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from polarlight.execution.batched import Batched
from polarlight.execution.job import Executor
from polarlight.execution.sharded import collectives
from polarlight.execution.sharded.collectives import Arena, Group
from polarlight.execution.sharded.layouts import Layout
from polarlight.execution.sharded.plan import Options, Plan
from polarlight.execution.sharded.schedule import Schedule
from polarlight.execution.sharded.step import Step, travelling
from polarlight.execution.sharded.units import MOMENTUM, Item
from polarlight.execution.work import Work, WorkExecutor, directions_of, is_sharded


@dataclass(slots=True)
class Prepared:
    """The work of an arena, planned: kept as long as the same parameters come."""

    arena: Arena
    plan: Plan
    schedule: Schedule
    works: Sequence[tuple[ref[Tensor], object, object]]
    """A weak reference to each parameter, its rule and its view."""

    def fits(self, arena: Arena, works: Sequence[Work]) -> bool:
        """Whether it was made for these."""
        return (
            arena is self.arena
            and len(works) == len(self.works)
            and all(
                parameter() is w.parameter and rule is w.rule and view == w.view
                for (parameter, rule, view), w in zip(self.works, works, strict=True)
            )
        )


@dataclass(slots=True)
class Sharded:
    """Matrices that several processes hold together, each computed by one of them.

    DTensors are seen for what they are: any mesh, `Shard`, `_StridedShard` and `Replicate`. Plain
    tensors are each process's own and computed by it, unless a `group` says that they are equal on
    all of its processes, as under `DistributedDataParallel`; then the work is shared.

    All processes must come with the same parameters in the same order; they are told so at the
    first step if they do not, and a parameter that has a gradient must have one on every process.

    Args:
        inner: What computes the matrices of one process.
        group: Processes with equal plain parameters and gradients.
        options: What plans may decide.

    Raises:
        ValueError: If a parameter's placement is a pending sum, or processes disagree.
    """

    inner: Executor = field(default_factory=Batched)
    group: Group | None = None
    options: Options = field(default_factory=Options)
    _arenas: dict[Any, Arena | None] = field(default_factory=dict, repr=False, compare=False)
    _prepared: list[Prepared] = field(default_factory=list, repr=False, compare=False)

    def directions_of(self, works: Sequence[Work]) -> list[Tensor]:
        """One direction per work, as far as it lies here."""
        alone: list[int] = []
        shared: dict[tuple[int, ...], tuple[Arena, list[int]]] = {}
        for number, work in enumerate(works):
            arena = self._arena(work.parameter)
            if arena is None:
                alone.append(number)
            else:
                key = (*arena.ranks, *arena.mesh)
                shared.setdefault(key, (arena, []))[1].append(number)
        results: dict[int, Tensor] = {}
        for _, (arena, numbers) in sorted(shared.items()):  # the same order everywhere
            members = [works[number] for number in numbers]
            prepared = self._prepare(arena, members)
            results.update(
                zip(numbers, Step(arena, prepared.schedule, members, self.inner).run(), strict=True)
            )
        members = [works[number] for number in alone]
        results.update(zip(alone, _alone(self.inner, members), strict=True))
        return [results[number] for number in range(len(works))]

    def layout(self, name: str, parameter: Tensor) -> Layout | None:
        """How a parameter lies on the processes that share its work; None if nobody does.

        Raises:
            ValueError: If its placement is a pending sum.
        """
        if is_sharded(parameter):
            return collectives.layout_of(parameter, name)
        arena = self._arena(parameter)
        return None if arena is None else collectives.replicated(parameter.shape, arena)

    def plans(self) -> list[Plan]:
        """The plans made so far, one per mesh and set of parameters."""
        return [prepared.plan for prepared in self._prepared]

    def _arena(self, parameter: Tensor) -> Arena | None:
        """Who shares the work on a parameter; None if this process is alone with it."""
        if is_sharded(parameter):
            mesh = parameter.device_mesh  # type: ignore[attr-defined]
            if mesh not in self._arenas:
                self._arenas[mesh] = collectives.arena_of(parameter)
            return self._arenas[mesh]
        if self.group is None:
            return None
        device = parameter.device.type
        if device not in self._arenas:
            self._arenas[device] = collectives.arena_of_group(self.group, device)
        return self._arenas[device]

    def _prepare(self, arena: Arena, works: Sequence[Work]) -> Prepared:
        """The plan for these parameters; made, and compared with the others', at first use."""
        for prepared in self._prepared:
            if prepared.fits(arena, works):
                return prepared
        items = [_item(work, arena) for work in works]
        plan = Plan(items, arena.coordinates, self.options)
        _check_agreement(plan, arena)
        known = [(ref(w.parameter), w.rule, w.view) for w in works]
        self._prepared = [p for p in self._prepared if all(r() is not None for r, _, _ in p.works)]
        self._prepared.append(Prepared(arena, plan, Schedule(plan, arena.rank), known))
        return self._prepared[-1]

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: no process group and nothing that was made for one."""
        return {"inner": self.inner, "options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The inverse; a group has to be set again."""
        self.__init__(**state)  # type: ignore[misc]


def check_executor(executor: Executor | WorkExecutor) -> Executor | WorkExecutor:
    """Return the executor; raises ValueError if it is none, or a class of executors."""
    if isinstance(executor, Executor | WorkExecutor) and not isinstance(executor, type):
        return executor
    raise ValueError(
        f"executor must be an object such as polarlight.Batched(), polarlight.OneByOne() or "
        f"polarlight.Sharded(), got {executor!r}; leave it out for the default"
    )


def around_shards(
    executor: Executor | WorkExecutor, parameters: Iterable[Tensor]
) -> Executor | WorkExecutor:
    """The executor itself; `Sharded` around it if it knows no shards and a parameter is one."""
    if isinstance(executor, WorkExecutor) or not any(map(is_sharded, parameters)):
        return executor
    return Sharded(executor)


def _alone(inner: Executor, works: Sequence[Work]) -> list[Tensor]:
    """Directions of what only this process computes; nothing for meshes it is no part of."""
    mine = [w for w in works if not is_sharded(w.parameter)]
    found = iter(directions_of(inner, mine))
    return [torch.zeros_like(w.momentum) if is_sharded(w.parameter) else next(found) for w in works]


def _item(work: Work, arena: Arena) -> Item:
    """A parameter as plans see it."""
    p, tensors = work.parameter, {MOMENTUM: work.parameter, **travelling(work)}
    if is_sharded(p):
        layouts = {name: collectives.layout_of(t, work.name) for name, t in tensors.items()}
    else:
        layouts = {name: collectives.replicated(t.shape, arena) for name, t in tensors.items()}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    dtypes[MOMENTUM] = work.momentum.dtype
    return Item(work.name, work.rule, work.view, layouts, dtypes)


def _check_agreement(plan: Plan, arena: Arena) -> None:
    """Raises ValueError on every process unless all of them made the same plan."""
    marks = collectives.gather_objects(plan.fingerprint, arena)
    if len(set(marks)) == 1:
        return
    lists = collectives.gather_objects([str(item) for item in plan.items], arena)
    other = next(rank for rank, mark in enumerate(marks) if mark != marks[0])
    raise ValueError(
        f"processes disagree on what this step is about ({arena}): {_difference(lists, other)}. "
        "Every process must give its optimizer the same parameters, rules and views in the same "
        "order, and a gradient to the same ones"
    )


def _difference(lists: Sequence[Sequence[str]], other: int) -> str:
    ours, theirs = lists[0], lists[other]
    for place, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return f"parameter {place} is [{a}] on rank 0 and [{b}] on rank {other}"
    return f"rank 0 has {len(ours)} parameters with gradients, rank {other} has {len(theirs)}"
