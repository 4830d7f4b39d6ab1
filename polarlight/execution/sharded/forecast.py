"""Plans without processes: what a step would do on a mesh that may not be there.

Meta tensors are enough, and no process group is needed, so that a cluster's plan can be read on a
laptop: who computes what, how evenly, and how many bytes it moves.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor

from polarlight.execution.job import new_buffers
from polarlight.execution.sharded.collectives import layout_of
from polarlight.execution.sharded.layouts import Layout
from polarlight.execution.sharded.plan import Options, Plan, traffic
from polarlight.execution.sharded.units import MOMENTUM, Item
from polarlight.execution.work import is_sharded
from polarlight.rule import HOST_COUNTER, UpdateRule
from polarlight.view import MatrixView, Whole

Lay = Callable[[str, Tensor], Layout | None]
"""From a parameter and its name to its layout; None for a parameter that nobody shares."""


def as_they_lie(name: str, parameter: Tensor) -> Layout | None:
    """The layout of a DTensor."""
    return layout_of(parameter, name) if is_sharded(parameter) else None


def forecast(
    groups: Iterable[Mapping[str, Any]], lay: Lay = as_they_lie, options: Options | None = None
) -> list[Plan]:
    """One plan per mesh, as `Sharded` makes them at the first step in which all have gradients.

    Args:
        groups: Param groups with rules, as recipes and optimizers have them.
        lay: How each parameter lies; by default as DTensors do.
        options: What plans may decide.
    """
    items: dict[tuple[int, ...], list[Item]] = {}
    for index, group in enumerate(groups):
        if not isinstance(group.get("rule"), UpdateRule):
            continue
        names = group.get("param_names") or [f"{index}.{i}" for i in range(len(group["params"]))]
        for name, p in zip(names, group["params"], strict=True):
            layout = lay(name, p)
            if layout is not None:
                item = _item(name, group["rule"], group.get("view") or Whole(), p, layout)
                items.setdefault(layout.mesh, []).append(item)
    return [
        Plan(same, tuple(product(*map(range, mesh))), options or Options())
        for mesh, same in items.items()
    ]


def _item(name: str, rule: UpdateRule, view: MatrixView, p: Tensor, layout: Layout) -> Item:
    buffers = new_buffers(rule, view, p.new_empty(p.shape, device="meta"))
    buffers.pop(HOST_COUNTER, None)
    layouts = {MOMENTUM: layout} | {n: layout.beside(b.shape) for n, b in buffers.items()}
    dtypes = {MOMENTUM: p.dtype} | {n: b.dtype for n, b in buffers.items()}
    return Item(name, rule, view, layouts, dtypes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A plan in numbers; bytes and flops are those of one step.

    Attributes:
        mesh: Sizes of the mesh.
        matrices: How many there are.
        local: How many of them are computed where they lie.
        balance: Largest load over the mean one.
        flops: Of matrix products, of the busiest process.
        sent: Bytes, of the process that sends most.
        received: Bytes, of the process that receives most.
        mean_bytes: Sent by a process on average.
        all_gather: Bytes that each process would receive if all momenta were gathered everywhere.
        exchange: Bytes that each would send on average if every matrix went to some owner and its
            direction back, wherever it lies.
        buckets: In how many pieces the work is done.
        rowwise: Parameters whose rows are computed where they lie.
        sums: Bytes that each process sends for their sums; part of `sent`.
    """

    mesh: tuple[int, ...]
    matrices: int
    local: int
    balance: float
    flops: int
    sent: int
    received: int
    mean_bytes: float
    all_gather: float
    exchange: float
    buckets: int
    rowwise: tuple[str, ...]
    sums: int

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.mesh))
        return (
            f"{self.matrices:,} matrices shared by a mesh of {shape} processes, {self.local:,} of "
            f"them where they lie, in {self.buckets} buckets; the busiest process has "
            f"{self.balance:.2f} times the mean load, {self.flops:.2e} flops of products. Per step "
            f"and process at most {_bytes(self.sent)} sent and {_bytes(self.received)} received; "
            f"gathering everything everywhere would be {_bytes(self.all_gather)}" + self._staying()
        )

    def _staying(self) -> str:
        if not self.rowwise:
            return ""
        some = ", ".join(self.rowwise[:3]) + (", ..." if len(self.rowwise) > 3 else "")
        count = len(self.rowwise)
        noun = "parameter stays" if count == 1 else "parameters stay"
        return f"; {count} {noun} where the rows lie ({some}), for {_bytes(self.sums)} of sums"


def summary(plan: Plan) -> Summary:
    """The plan in numbers."""
    moved = traffic(plan)
    layouts = [item.layouts[MOMENTUM] for item in plan.items]
    total, gathered, exchanged = 0.0, 0.0, 0.0
    for item, layout in zip(plan.items, layouts, strict=True):
        size = item.dtypes[MOMENTUM].itemsize * _numel(layout.shape)
        shards = plan.size // layout.copies
        total += size
        gathered += size * (1 - 1 / shards)
        exchanged += size * (1 - 1 / shards) / plan.size + size * (1 - 1 / plan.size) / shards
    return Summary(
        mesh=layouts[0].mesh,
        matrices=len(plan.units),
        local=plan.gathered.count(False),
        balance=max(plan.loads) / (sum(plan.loads) / len(plan.loads) or 1.0) or 1.0,
        flops=max(plan.flops),
        sent=max(t.sent for t in moved),
        received=max(t.received for t in moved),
        mean_bytes=sum(t.sent for t in moved) / len(moved),
        all_gather=gathered,
        exchange=exchanged,
        buckets=len(plan.buckets),
        rowwise=tuple(plan.items[number].name for number in plan.rowwise),
        sums=sum(stay.sent for stay in plan.rowwise.values()),
    )


def _numel(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
