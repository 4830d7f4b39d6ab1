"""Forecast: the plan of a step and its traffic, without the processes of the mesh.

Meta tensors are enough and no process group is needed: a cluster's plan can be read on a laptop,
with owners, balance and bytes moved.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from torch import Tensor

from polarlight.execution.job import new_buffers
from polarlight.execution.param_task import is_sharded
from polarlight.execution.sharded.collectives import MeshKey, layout_of, mesh_key
from polarlight.execution.sharded.layouts import Layout
from polarlight.execution.sharded.memory import message_count, peak_bytes
from polarlight.execution.sharded.node_sharing import mean_load
from polarlight.execution.sharded.options import Options
from polarlight.execution.sharded.plan import ShardedPlan
from polarlight.execution.sharded.schedule import ProcessSchedule
from polarlight.execution.sharded.specs import MATRIX, ParamSpec
from polarlight.execution.sharded.traffic import Traffic, traffic
from polarlight.linalg.slot import GRADIENT
from polarlight.rule import HOST_COUNTER, UpdateRule
from polarlight.view import MatrixView, Whole

LayoutOf = Callable[[str, Tensor], Layout | None]
"""(name, parameter) -> its layout; None for a parameter of one process alone."""


def dtensor_layout(name: str, parameter: Tensor) -> Layout | None:
    """Return the layout of a DTensor; None for a plain tensor."""
    return layout_of(parameter, name) if is_sharded(parameter) else None


def forecast(
    groups: Iterable[Mapping[str, Any]],
    layout_of_param: LayoutOf = dtensor_layout,
    options: Options | None = None,
) -> list[ShardedPlan]:
    """Return the plan of each mesh as `Sharded` makes it, smaller meshes first, in one process.

    The last plan's loads are those of all.

    Args:
        groups: Param groups with rules, as recipes and optimizers have them.
        layout_of_param: Layout of each parameter; by default that of a DTensor.
        options: Limits and thresholds of the plans.
    """
    by_mesh: dict[MeshKey, list[ParamSpec]] = {}
    for index, group in enumerate(groups):
        if not isinstance(group.get("rule"), UpdateRule):
            continue
        names = group.get("param_names") or [f"{index}.{i}" for i in range(len(group["params"]))]
        for name, p in zip(names, group["params"], strict=True):
            layout = layout_of_param(name, p)
            if layout is not None:
                view = group.get("view") or Whole()
                spec = _expected_spec(name, group["rule"], view, p, layout)
                size = prod(layout.mesh)  # ranks count from 0 for a parameter that is no DTensor
                on_mesh = p.device_mesh.mesh.flatten() if is_sharded(p) else range(size)
                key = mesh_key(size, tuple(map(int, on_mesh)), layout.mesh)
                by_mesh.setdefault(key, []).append(spec)
    options = options or Options()
    in_order = sorted(by_mesh.items(), key=lambda entry: entry[0])
    plans: list[ShardedPlan] = []
    loads: dict[int, float] = {}  # by global rank, of the plans so far
    for number, ((size, ranks, shape), same) in enumerate(in_order):
        base_loads = [loads.get(rank, 0.0) for rank in ranks]
        later: dict[int, float] = dict.fromkeys(ranks, 0.0)
        for (other_size, others, _), specs in in_order[number + 1 :]:
            load = mean_load(specs, other_size, options)
            for rank in later.keys() & others:
                later[rank] += load
        later_load = sum(later.values()) / size
        coordinates = tuple(product(*map(range, shape)))
        plan = ShardedPlan(same, coordinates, options, ranks, base_loads, later_load)
        plans.append(plan)
        loads |= zip(ranks, plan.loads, strict=True)
    return plans


def _expected_spec(
    name: str, rule: UpdateRule, view: MatrixView, p: Tensor, layout: Layout
) -> ParamSpec:
    """Return a parameter's `ParamSpec`, with the buffers that it will have in a step."""
    buffers = new_buffers(rule, view, p.new_empty(p.shape, device="meta"))
    buffers.pop(HOST_COUNTER, None)
    layouts = {MATRIX: layout} | {n: layout.for_buffer(b.shape) for n, b in buffers.items()}
    dtypes = {MATRIX: p.dtype} | {n: b.dtype for n, b in buffers.items()}
    if rule.reads_gradient(view.shapes(p.shape)):
        layouts[GRADIENT], dtypes[GRADIENT] = layout, p.dtype
    return ParamSpec(name, rule, view, layouts, dtypes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Numbers of a plan; bytes and flops are those of one step.

    Attributes:
        mesh: Size of each mesh dimension.
        matrices: Number of matrices that have owners.
        local: Number of matrices that are computed without a gather.
        balance: Largest load of a process over the mean load.
        flops: Flops of matrix products of the process with the most.
        sent: Bytes sent by the process that sends most.
        received: Bytes received by the process that receives most.
        peers: Processes that the one with most of them exchanges messages with.
        messages: Messages of the busiest process.
        at_once: Most bytes that a process sends, receives or passes on in one exchange of a bucket.
        peak_memory: Bytes of messages and assembled matrices at the same time on the busiest
            process, beside weights, gradients, optimizer state and what a rule needs to compute.
        mean_bytes: Mean of the bytes sent by a process.
        all_gather: Bytes that each process would receive if all momenta were all-gathered.
        exchange: Mean of the bytes that a process would send if every matrix were gathered on a
            random owner and its direction scattered.
        buckets: Number of buckets.
        rowwise: Names of the parameters that are computed row-wise.
        sums: Bytes that each process sends for row-wise sums; part of `sent`.
        shared: Names of the parameters whose matrices processes of a node compute together.
        sharers: Processes that compute such a matrix; 1 without any.
        shared_sums: Bytes that the process with most of them sends for sums over the parts of
            shared matrices; part of `sent`.
    """

    mesh: tuple[int, ...]
    matrices: int
    local: int
    balance: float
    flops: int
    sent: int
    received: int
    peers: int
    messages: int
    at_once: int
    peak_memory: int
    mean_bytes: float
    all_gather: float
    exchange: float
    buckets: int
    rowwise: tuple[str, ...]
    sums: int
    shared: tuple[str, ...]
    sharers: int
    shared_sums: int

    def __str__(self) -> str:
        """Return loads, bytes and messages of a plan as sentences."""
        shape = " x ".join(map(str, self.mesh))
        text = (
            f"{self.matrices:,} matrices shared by a mesh of {shape} processes, {self.local:,} of "
            f"them where they lie, in {self.buckets} buckets; the busiest process has "
            f"{self.balance:.2f} times the mean load, {self.flops:.2e} flops of products. Per step "
            f"and process at most {_format_bytes(self.sent)} sent and "
            f"{_format_bytes(self.received)} received, in {self.messages:,} messages with at most "
            f"{self.peers:,} others, {_format_bytes(self.at_once)} at a time; messages and "
            f"assembled matrices take {_format_bytes(self.peak_memory)} of memory at their peak; "
            f"gathering everything everywhere would be {_format_bytes(self.all_gather)}"
        )
        if self.rowwise:
            count = len(self.rowwise)
            text += (
                f"; {count} {'parameter stays' if count == 1 else 'parameters stay'} where the "
                f"rows lie ({_some_of(self.rowwise)}), for {_format_bytes(self.sums)} of sums"
            )
        if self.shared:
            count = len(self.shared)
            text += (
                f"; {count} {'parameter is' if count == 1 else 'parameters are'} computed by "
                f"{self.sharers} processes of a node together ({_some_of(self.shared)}), for at "
                f"most {_format_bytes(self.shared_sums)} of sums"
            )
        return text


def summary(plan: ShardedPlan) -> Summary:
    """Return loads, bytes, messages and peak memory of a plan, for reports."""
    moved = traffic(plan)
    busiest = [ProcessSchedule(plan, rank) for rank in _busiest(plan, moved)]
    layouts = [spec.layouts[MATRIX] for spec in plan.params]
    gathered, exchanged = 0.0, 0.0
    for spec, layout in zip(plan.params, layouts, strict=True):
        size = spec.dtypes[MATRIX].itemsize * prod(layout.shape)
        shards = plan.size // layout.copies
        gathered += size * (1 - 1 / shards)
        exchanged += size * (1 - 1 / shards) / plan.size + size * (1 - 1 / plan.size) / shards
    shared_sums = [0] * plan.size
    for kind, owner in zip(plan.kinds, plan.owners, strict=True):
        shared_sums[owner] += kind.sum_bytes
    whole = [(n,) for n, matrix in enumerate(plan.matrices) if matrix.part is None]
    matrices = [*whole, *(matrix.numbers for matrix in plan.shared)]  # a shared one counts once
    names = [plan.params[plan.matrices[m.numbers[0]].param].name for m in plan.shared]
    return Summary(
        mesh=layouts[0].mesh,
        matrices=len(matrices),
        local=sum(not any(plan.gathered[n] for n in numbers) for numbers in matrices),
        balance=max(plan.loads) / (sum(plan.loads) / len(plan.loads) or 1.0) or 1.0,
        flops=max(plan.flops),
        sent=round(max(t.sent for t in moved)),
        received=round(max(t.received for t in moved)),
        peers=max(len(t.peers) for t in moved),
        messages=max(map(message_count, busiest)),
        at_once=max(t.at_once for t in moved),
        peak_memory=max(map(peak_bytes, busiest)),
        mean_bytes=sum(t.sent for t in moved) / len(moved),
        all_gather=gathered,
        exchange=exchanged,
        buckets=len(plan.buckets),
        rowwise=tuple(plan.params[number].name for number in plan.rowwise),
        sums=sum(rowwise.sent for rowwise in plan.rowwise.values()),
        shared=tuple(dict.fromkeys(names)),
        sharers=max((len(matrix.ranks) for matrix in plan.shared), default=1),
        shared_sums=max(shared_sums),
    )


def _busiest(plan: ShardedPlan, moved: Sequence[Traffic]) -> set[int]:
    """Return the ranks with the largest load, bytes sent, received or at once, and most peers."""
    every = range(plan.size)
    keys: list[Callable[[int], float]] = [
        plan.loads.__getitem__,
        lambda rank: moved[rank].sent,
        lambda rank: moved[rank].received,
        lambda rank: moved[rank].at_once,
        lambda rank: len(moved[rank].peers),
    ]
    return {max(every, key=key) for key in keys}


def _some_of(names: Sequence[str]) -> str:
    """Return up to three names, and dots for more."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _format_bytes(count: float) -> str:
    """Return a number of bytes as text in decimal units, B to TB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
