"""`Sharded`: directions of parameters that are spread over processes, equal to those of one device.

Every matrix has one owner. Shards of its momentum are sent to the owner, whatever the layout, and
shards of the direction are sent back. Nothing is all-gathered. Costly matrices may have an owner
per block of rows or columns, on one node, who repeat nothing but the work on the Gram matrix.
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
from polarlight.execution.param_task import (
    LoadedTasks,
    Member,
    ParamExecutor,
    ParamTask,
    StreamedParams,
    directions_of,
    is_sharded,
)
from polarlight.execution.sharded import collectives
from polarlight.execution.sharded.collectives import (
    MeshKey,
    MeshTable,
    ProcessGroup,
    ProcessMesh,
)
from polarlight.execution.sharded.disagreement import check_plan
from polarlight.execution.sharded.exchange import Groups
from polarlight.execution.sharded.layouts import Layout
from polarlight.execution.sharded.node_sharing import mean_load
from polarlight.execution.sharded.options import Options
from polarlight.execution.sharded.plan import ShardedPlan
from polarlight.execution.sharded.schedule import ProcessSchedule
from polarlight.execution.sharded.specs import param_spec
from polarlight.execution.sharded.step import ShardedStep

MomentumKind = tuple[int, torch.dtype]
"""Id of the rule and dtype of the parameter, which decide the dtype of a momentum."""

MOST_PLANS = 4
"""Plans kept per executor and mesh: parameters that take turns need more than one."""


@dataclass(slots=True)
class CachedPlan:
    """Plan of a mesh with its schedule, reused by steps with the same parameters.

    Attributes:
        groups: The process mesh, with the groups of the plan's exchanges.
        plan: The plan.
        schedule: The part of the plan that this process carries out.
        keys: A weak reference to each parameter, with its rule, its view and its momentum's dtype.
        masked: Schedule for the parameters that had a gradient last, by their numbers.
    """

    groups: Groups
    plan: ShardedPlan
    schedule: ProcessSchedule
    keys: Sequence[tuple[ref[Tensor], object, object, torch.dtype]]
    masked: tuple[frozenset[int], ProcessSchedule] | None = None

    def is_for(
        self, mesh: ProcessMesh, members: Sequence[Member], dtypes: Sequence[torch.dtype]
    ) -> bool:
        """Return whether the plan is for this mesh, these parameters, rules, views and dtypes."""
        return (
            mesh.key == self.groups.mesh.key
            and len(members) == len(self.keys)
            and all(
                parameter() is m.parameter and rule is m.rule and view == m.view and dtype == d
                for (parameter, rule, view, dtype), m, d in zip(
                    self.keys, members, dtypes, strict=True
                )
            )
        )

    def schedule_for(self, active: frozenset[int]) -> ProcessSchedule:
        """Return the schedule restricted to these parameter numbers; the latest one is cached."""
        if len(active) == len(self.keys):
            return self.schedule
        if self.masked is None or self.masked[0] != active:
            self.masked = active, self.schedule.masked(active)
        return self.masked[1]


@dataclass(slots=True)
class MeshMembers:
    """Parameters that one mesh shares, numbered as in its plan.

    Attributes:
        mesh: The process mesh.
        members: The parameters.
        numbers: Their numbers, by the id of the parameter.
        kinds: Their kinds, each once.
        planned: Dtypes of momenta by kind, and the plan for these; None before it is made.
    """

    mesh: ProcessMesh
    members: list[Member] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    kinds: dict[MomentumKind, None] = field(default_factory=dict)
    planned: tuple[dict[MomentumKind, torch.dtype], CachedPlan] | None = None

    def add(self, member: Member) -> None:
        """Append a member; store its number and the kind of its momentum."""
        self.numbers[id(member.parameter)] = len(self.members)
        self.members.append(member)
        self.kinds[_momentum_kind(member)] = None


@dataclass(slots=True)
class Sharded:
    """Executor for matrices that several processes hold together, each computed by one of them.

    It takes DTensors on any mesh with `Shard`, `_StridedShard` and `Replicate` placements. A plain
    tensor belongs to its process alone, unless a `group` states that it is equal on all processes
    of the group, as under `DistributedDataParallel`; then they share the work.

    All processes must come with the same parameters in the same order, and with gradients of the
    same ones; every step compares them before anything moves.

    Args:
        inner: Executor for the matrices of one process.
        group: Processes with equal plain parameters and gradients.
        options: Limits and thresholds of the plan.
        missing_gradients: "error", or "zero" to take a gradient for zero in a step in which this
            process has none and another one has, as of experts that saw no token.
        weights_last: Whether weights move only when all directions have come, so that an error
            before leaves them as they were. Otherwise each direction is applied and freed as soon
            as it is complete, and momenta are formed when they are sent: that saves one tensor in
            the shape of each local shard, which is much where shards are large (HSDP, DDP). A step
            that a probe observes, and groups with parameters that are not shared, move last.

    Raises:
        ValueError: If a parameter's placement is a pending sum, or processes disagree.
    """

    inner: Executor = field(default_factory=Batched)
    group: ProcessGroup | None = None
    options: Options = field(default_factory=Options)
    missing_gradients: str = "error"
    weights_last: bool = True
    _meshes: MeshTable = field(default_factory=MeshTable, repr=False, compare=False)
    _cached: list[CachedPlan] = field(default_factory=list, repr=False, compare=False)
    _trainable: Sequence[Member] = field(default=(), repr=False, compare=False)
    _announced: dict[MeshKey, MeshMembers] = field(default_factory=dict, repr=False, compare=False)
    _mesh_by_id: dict[int, ProcessMesh] = field(default_factory=dict, repr=False, compare=False)
    _dtypes: dict[MomentumKind, torch.dtype] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Raise ValueError if `missing_gradients` is neither "error" nor "zero"."""
        if self.missing_gradients not in ("error", "zero"):
            raise ValueError(
                f"missing_gradients must be 'error' or 'zero', got {self.missing_gradients!r}"
            )

    def announce(self, trainable: Sequence[Member]) -> None:
        """Store all trainable parameters with matrix rules; later plans cover all of them.

        If they are the same list as before, nothing about them has changed.
        """
        if trainable is self._trainable:
            return
        self._trainable, self._announced, self._mesh_by_id = trainable, {}, {}
        for m in trainable:
            if (mesh := self._mesh_of(m.parameter)) is not None:
                if mesh.key not in self._announced:
                    self._announced[mesh.key] = MeshMembers(mesh)
                self._announced[mesh.key].add(m)
        for own in self._announced.values():
            self._mesh_by_id.update(dict.fromkeys(own.numbers, own.mesh))

    def directions_of(self, tasks: Sequence[ParamTask]) -> list[Tensor]:
        """Return the local part of one direction per task; update the rules' buffers in place."""
        directions: list[Tensor] = [t.momentum for t in tasks]  # each is replaced below
        alone: list[int] = []
        on_mesh: dict[MeshKey, tuple[ProcessMesh, list[int]]] = {}
        for number, task in enumerate(tasks):
            mesh = self._mesh_of(task.parameter)
            if mesh is not None:
                on_mesh.setdefault(mesh.key, (mesh, []))[1].append(number)
            elif is_sharded(task.parameter):  # on a mesh that this process is not part of
                directions[number] = torch.zeros_like(task.momentum)
            else:
                alone.append(number)
        # Sorted, so that all processes start the collectives of several meshes in the same order.
        for _, (mesh, numbers) in sorted(on_mesh.items()):
            of_mesh = [tasks[number] for number in numbers]
            self._dtypes.update({_momentum_kind(t): t.momentum.dtype for t in of_mesh})
            cached, in_plan = self._cached_plan(mesh, of_mesh)
            loaded = LoadedTasks({in_plan[id(t.parameter)]: t for t in of_mesh})
            schedule = cached.schedule_for(frozenset(loaded.tasks))
            ShardedStep(cached.groups, schedule, loaded, self.inner).run()
            for number, k in zip(numbers, loaded.tasks, strict=True):
                directions[number] = loaded.directions[k]
        own = directions_of(self.inner, [tasks[number] for number in alone])
        for number, direction in zip(alone, own, strict=True):
            directions[number] = direction
        return directions

    def stream(self, params: StreamedParams) -> None:
        """Run a step mesh by mesh: load momenta when needed, pass directions to `params.store`."""
        on_mesh: dict[MeshKey, tuple[ProcessMesh, list[int]]] = {}
        for k, member in enumerate(params.members):
            if (mesh := self._mesh_of(member.parameter)) is not None:
                on_mesh.setdefault(mesh.key, (mesh, []))[1].append(k)
        for _, (mesh, positions) in sorted(on_mesh.items()):
            own = [params.members[k] for k in positions]
            # Dtypes of momenta of new kinds are found by loading one member of each.
            new: dict[MomentumKind, int] = {}
            for k, member in zip(positions, own, strict=True):
                if (kind := _momentum_kind(member)) not in self._dtypes:
                    new.setdefault(kind, k)
            found = params.momentum_dtypes([*new.values()])
            self._dtypes.update(zip(new, found, strict=True))
            cached, numbers = self._cached_plan(mesh, own)
            by_number = {numbers[id(params.members[k].parameter)]: k for k in positions}
            schedule = cached.schedule_for(frozenset(by_number))
            ShardedStep(cached.groups, schedule, params.numbered(by_number), self.inner).run()

    def layout(self, name: str, parameter: Tensor) -> Layout | None:
        """Return a parameter's layout on its mesh; None if this process works on it alone.

        Raises:
            ValueError: If its placement is a pending sum.
        """
        if is_sharded(parameter):
            return collectives.layout_of(parameter, name)
        mesh = self._mesh_of(parameter)
        return None if mesh is None else collectives.replicated_layout(parameter.shape, mesh)

    def plans(self) -> list[ShardedPlan]:
        """Return the cached plans, each of all trainable parameters of one mesh."""
        return [cached.plan for cached in self._cached]

    def _mesh_of(self, parameter: Tensor) -> ProcessMesh | None:
        """Return a DTensor's mesh, or `group` as a mesh for a plain tensor; None if not in one."""
        if (known := self._mesh_by_id.get(id(parameter))) is not None:
            return known
        if is_sharded(parameter):
            return self._meshes.of_dtensor(parameter)
        return self._meshes.of_plain(parameter, self.group)

    def _cached_plan(
        self, mesh: ProcessMesh, active: Sequence[Member]
    ) -> tuple[CachedPlan, dict[int, int]]:
        """Return a plan that covers `active` (new: a collective) and {id(parameter): number}."""
        own = self._announced.get(mesh.key)
        if own is None or not all([id(m.parameter) in own.numbers for m in active]):
            own = MeshMembers(mesh)
            for m in active:
                own.add(m)
        # The momentum of a parameter without a gradient yet is expected in the parameter's dtype.
        dtypes = {kind: self._dtypes.get(kind, kind[1]) for kind in own.kinds}
        if own.planned is None or own.planned[0] != dtypes:
            of_members = [dtypes[_momentum_kind(m)] for m in own.members]
            own.planned = dtypes, self._plan_for(mesh, own.members, of_members)
        return own.planned[1], own.numbers

    def _plan_for(
        self, mesh: ProcessMesh, members: Sequence[Member], dtypes: Sequence[torch.dtype]
    ) -> CachedPlan:
        """Return the members' cached plan, or a new one, compared over the mesh (a collective)."""
        for cached in self._cached:
            if cached.is_for(mesh, members, dtypes):
                return cached
        specs = [param_spec(m, mesh, dtype) for m, dtype in zip(members, dtypes, strict=True)]
        on_others = collectives.gather_equal(self._loads_on_other_meshes(mesh), mesh)  # [size, 2]
        base_loads, later_loads = on_others.T.tolist()
        later_load = sum(later_loads) / mesh.size
        plan = ShardedPlan(
            specs, mesh.coordinates, self.options, mesh.ranks, base_loads, later_load
        )
        check_plan(plan, mesh)
        made = [
            (ref(m.parameter), m.rule, m.view, dtype)
            for m, dtype in zip(members, dtypes, strict=True)
        ]
        kept = [c for c in self._cached if all(p() is not None for p, *_ in c.keys)]
        others = [c for c in kept if c.groups.mesh.key != mesh.key]
        same = [c for c in kept if c.groups.mesh.key == mesh.key]
        self._cached = [*others, *same[-MOST_PLANS + 1 :]]
        schedule = ProcessSchedule(plan, mesh.rank)
        self._cached.append(CachedPlan(Groups(mesh, plan), plan, schedule, made))
        return self._cached[-1]

    def _loads_on_other_meshes(self, mesh: ProcessMesh) -> Tensor:
        """Return float64 [2]: this process's load on planned meshes, mean load on later ones.

        The first is that of their latest plans, the second the mean load by trainable parameters
        of meshes that come after this one and have no plan.
        """
        latest = {c.groups.mesh.key: c for c in self._cached if c.groups.mesh.key != mesh.key}
        places = [(c.plan, c.groups.mesh.rank) for c in latest.values()]
        load = sum(plan.loads[rank] - plan.base_loads[rank] for plan, rank in places)
        later = 0.0
        for key, own in sorted(self._announced.items()):
            if mesh.key < key and key not in latest:
                specs = [param_spec(m, own.mesh) for m in own.members]
                later += mean_load(specs, own.mesh.size, self.options)
        return torch.tensor([load, later], dtype=torch.float64, device=mesh.device)

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields that pickling and copying keep: no process group, no plan."""
        kept = ("inner", "options", "missing_gradients", "weights_last")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what `__getstate__` returned; a group has to be set again."""
        self.__init__(**state)  # type: ignore[misc]


def _momentum_kind(member: Member) -> MomentumKind:
    """Return (id of the rule, dtype) of a parameter; both decide the dtype of its momentum."""
    return id(member.rule), member.parameter.dtype


def check_executor(executor: Executor | ParamExecutor) -> Executor | ParamExecutor:
    """Return the executor unchanged; raise ValueError if it is none, or a class of executors."""
    if isinstance(executor, Executor | ParamExecutor) and not isinstance(executor, type):
        return executor
    raise ValueError(
        f"executor must be an object such as polarlight.Batched(), polarlight.OneByOne() or "
        f"polarlight.Sharded(), got {executor!r}; leave it out for the default"
    )
