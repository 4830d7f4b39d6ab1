"""`Sharded`: directions of parameters that are spread over processes, equal to those of one device.

Every matrix has one owner. Shards of its momentum are sent to the owner, whatever the layout, and
shards of the direction are sent back. Nothing is all-gathered, and nothing is computed twice.
Buffers are sharded like the parameters and travel with their matrix. While one bucket of matrices
is computed, the next one is received and the directions of the last one are sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from polarlight.execution.batched import Batched
from polarlight.execution.job import Executor
from polarlight.execution.param_task import ParamExecutor, ParamTask, directions_of, is_sharded
from polarlight.execution.sharded import collectives
from polarlight.execution.sharded.collectives import ProcessGroup, ProcessMesh
from polarlight.execution.sharded.layouts import Layout
from polarlight.execution.sharded.plan import Options, Plan
from polarlight.execution.sharded.schedule import ProcessSchedule
from polarlight.execution.sharded.specs import MATRIX, ParamSpec
from polarlight.execution.sharded.step import ShardedStep, device_buffers


@dataclass(slots=True)
class CachedPlan:
    """Plan of a mesh with its schedule, reused while the same parameters come.

    Attributes:
        mesh: The process mesh.
        plan: The plan.
        schedule: The part of the plan that this process carries out.
        keys: A weak reference to each parameter, with its rule and its view.
    """

    mesh: ProcessMesh
    plan: Plan
    schedule: ProcessSchedule
    keys: Sequence[tuple[ref[Tensor], object, object]]

    def is_for(self, mesh: ProcessMesh, tasks: Sequence[ParamTask]) -> bool:
        """Return whether the plan was made for these tasks on this mesh."""
        return (
            mesh is self.mesh
            and len(tasks) == len(self.keys)
            and all(
                parameter() is t.parameter and rule is t.rule and view == t.view
                for (parameter, rule, view), t in zip(self.keys, tasks, strict=True)
            )
        )


@dataclass(slots=True)
class Sharded:
    """Executor for matrices that several processes hold together, each computed by one of them.

    It takes DTensors on any mesh with `Shard`, `_StridedShard` and `Replicate` placements. A plain
    tensor belongs to its process alone, unless a `group` states that it is equal on all processes
    of the group, as under `DistributedDataParallel`; then they share the work.

    All processes must come with the same parameters in the same order; the first step compares
    them. A parameter that has a gradient must have one on every process.

    Args:
        inner: Executor for the matrices of one process.
        group: Processes with equal plain parameters and gradients.
        options: Limits and thresholds of the plan.

    Raises:
        ValueError: If a parameter's placement is a pending sum, or processes disagree.
    """

    inner: Executor = field(default_factory=Batched)
    group: ProcessGroup | None = None
    options: Options = field(default_factory=Options)
    _meshes: dict[Any, ProcessMesh | None] = field(default_factory=dict, repr=False, compare=False)
    _cached: list[CachedPlan] = field(default_factory=list, repr=False, compare=False)

    def directions_of(self, tasks: Sequence[ParamTask]) -> list[Tensor]:
        """Return the local part of one direction per task; update the buffers in place."""
        directions: list[Tensor] = [t.momentum for t in tasks]  # each is replaced below
        alone: list[int] = []
        on_mesh: dict[tuple[int, ...], tuple[ProcessMesh, list[int]]] = {}
        for number, task in enumerate(tasks):
            mesh = self._mesh_of(task.parameter)
            if mesh is not None:
                key = (*mesh.ranks, *mesh.shape)
                on_mesh.setdefault(key, (mesh, []))[1].append(number)
            elif is_sharded(task.parameter):  # on a mesh that this process is not part of
                directions[number] = torch.zeros_like(task.momentum)
            else:
                alone.append(number)
        # Sorted, so that all processes start the collectives of several meshes in the same order.
        for _, (mesh, numbers) in sorted(on_mesh.items()):
            of_mesh = [tasks[number] for number in numbers]
            schedule = self._plan_for(mesh, of_mesh).schedule
            computed = ShardedStep(mesh, schedule, of_mesh, self.inner).run()
            for number, direction in zip(numbers, computed, strict=True):
                directions[number] = direction
        own = directions_of(self.inner, [tasks[number] for number in alone])
        for number, direction in zip(alone, own, strict=True):
            directions[number] = direction
        return directions

    def layout(self, name: str, parameter: Tensor) -> Layout | None:
        """Return the layout of a parameter on the processes that share its work; None if alone.

        Raises:
            ValueError: If its placement is a pending sum.
        """
        if is_sharded(parameter):
            return collectives.layout_of(parameter, name)
        mesh = self._mesh_of(parameter)
        return None if mesh is None else collectives.replicated_layout(parameter.shape, mesh)

    def plans(self) -> list[Plan]:
        """Return the plans made so far, one per mesh and set of parameters."""
        return [cached.plan for cached in self._cached]

    def _mesh_of(self, parameter: Tensor) -> ProcessMesh | None:
        """Return the processes that share the work on a parameter; None if there are no others."""
        if is_sharded(parameter):
            mesh = parameter.device_mesh  # type: ignore[attr-defined]
            if mesh not in self._meshes:
                self._meshes[mesh] = collectives.mesh_of_dtensor(parameter)
            return self._meshes[mesh]
        if self.group is None:
            return None
        device = parameter.device.type
        if device not in self._meshes:
            self._meshes[device] = collectives.mesh_of_group(self.group, device)
        return self._meshes[device]

    def _plan_for(self, mesh: ProcessMesh, tasks: Sequence[ParamTask]) -> CachedPlan:
        """Return the cached plan of these tasks, or make one and compare it on all processes."""
        for cached in self._cached:
            if cached.is_for(mesh, tasks):
                return cached
        plan = Plan([_param_spec(t, mesh) for t in tasks], mesh.coordinates, self.options)
        _check_agreement(plan, mesh)
        keys = [(ref(t.parameter), t.rule, t.view) for t in tasks]
        self._cached = [c for c in self._cached if all(p() is not None for p, _, _ in c.keys)]
        self._cached.append(CachedPlan(mesh, plan, ProcessSchedule(plan, mesh.rank), keys))
        return self._cached[-1]

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled and copied: no process group, no plan."""
        return {"inner": self.inner, "options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what `__getstate__` returned; a group has to be set again."""
        self.__init__(**state)  # type: ignore[misc]


def check_executor(executor: Executor | ParamExecutor) -> Executor | ParamExecutor:
    """Return the executor; raise ValueError if it is none, or a class of executors."""
    if isinstance(executor, Executor | ParamExecutor) and not isinstance(executor, type):
        return executor
    raise ValueError(
        f"executor must be an object such as polarlight.Batched(), polarlight.OneByOne() or "
        f"polarlight.Sharded(), got {executor!r}; leave it out for the default"
    )


def _param_spec(task: ParamTask, mesh: ProcessMesh) -> ParamSpec:
    """Return layouts and dtypes of a task's momentum and buffers, without the host counter."""
    p, tensors = task.parameter, {MATRIX: task.parameter, **device_buffers(task)}
    layouts = {
        name: collectives.layout_of(t, task.name)
        if is_sharded(p)
        else collectives.replicated_layout(t.shape, mesh)
        for name, t in tensors.items()
    }
    dtypes = {name: t.dtype for name, t in tensors.items()} | {MATRIX: task.momentum.dtype}
    return ParamSpec(task.name, task.rule, task.view, layouts, dtypes)


def _check_agreement(plan: Plan, mesh: ProcessMesh) -> None:
    """Raise ValueError on every process unless all of them made the same plan."""
    fingerprints = collectives.all_gather_object(plan.fingerprint, mesh.group)
    if len(set(fingerprints)) == 1:
        return
    texts = collectives.all_gather_object([str(spec) for spec in plan.params], mesh.group)
    other = next(rank for rank, mark in enumerate(fingerprints) if mark != fingerprints[0])
    raise ValueError(
        f"processes disagree on the parameters of this step ({mesh}): "
        f"{_first_difference(texts[0], texts[other], other)}. "
        "Every process must give its optimizer the same parameters, rules and views in the same "
        "order, and a gradient to the same ones"
    )


def _first_difference(ours: Sequence[str], theirs: Sequence[str], rank: int) -> str:
    """Return the first parameter that differs between rank 0 and another rank, as text."""
    for number, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return f"parameter {number} is [{a}] on rank 0 and [{b}] on rank {rank}"
    return f"rank 0 has {len(ours)} parameters with gradients, rank {rank} has {len(theirs)}"
