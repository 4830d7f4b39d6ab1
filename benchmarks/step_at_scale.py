"""Host time of one process's step on up to 4,096 processes, with a fake process group.

    python -m benchmarks.step_at_scale
    python -m benchmarks.step_at_scale --model qwen3-30b-a3b --processes 512 1024
    python -m benchmarks.step_at_scale --processes 4096 --node-size 1

The process has the shards of a model under `fully_shard` and takes part in a step of Aurora, while
collectives do nothing and directions cost nothing. Matrices have a 256th of their columns, buckets
a 256th of their bytes: messages and fragments are as many as in the model, buckets at least, since
row scales keep their size. Owners, and matrices that processes of a node share, are those of the
model. What is left is the time of the host: CPU time of the process, median
and largest of `--repeats` steps after two others, in `Sharded` alone and in all of
`Optimizer.step`. The process is the one that owns most matrices, of equal ones the one that sends
most. Writes a JSON file.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import polarlight as pl
from benchmarks.plans_at_scale import MODELS, layout_on
from polarlight.execution.job import Job
from polarlight.execution.sharded import collectives
from polarlight.execution.sharded import plan as plan_module
from polarlight.execution.sharded import step as step_module
from polarlight.execution.sharded.forecast import forecast
from polarlight.execution.sharded.kinds import MatrixKind
from polarlight.execution.sharded.node_sharing import OwnerAssignment, parts_of
from polarlight.execution.sharded.options import Options
from polarlight.execution.sharded.plan import ShardedPlan
from polarlight.execution.sharded.specs import MatrixSpec
from polarlight.execution.sharded.traffic import traffic


class Free:
    """Executor of directions that cost nothing."""

    def directions(self, jobs: Sequence[Job]) -> list[Tensor]:
        return [job.matrix for job in jobs]


class Timed(pl.Sharded):
    """`Sharded` that keeps the CPU seconds of its calls."""

    def directions_of(self, tasks: Any) -> list[Tensor]:
        start = time.process_time()
        found = super().directions_of(tasks)
        self.__dict__.setdefault("seconds", []).append(time.process_time() - start)
        return found


def groups_of(model: str, params: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Aurora for matrices that are tall in the model; Muon, which it is there, for the others."""
    tall: dict[bool, list[Tensor]] = {True: [], False: []}
    for (_, shape), p in zip(MODELS[model](), params, strict=True):
        tall[shape[-2] > shape[-1]].append(p)
    rules = {True: pl.rules.aurora(), False: pl.rules.muon()}
    view = pl.view.Whole()
    return [{"params": some, "rule": rules[k], "view": view} for k, some in tall.items() if some]


ASSIGNED = plan_module.assign_owners


def owners_of_the_model(
    model: str, processes: int, options: Options
) -> Callable[..., OwnerAssignment]:
    """`assign_owners` for narrow matrices: with owners and parts of the model's own."""
    tensors = [
        torch.empty(shape, device="meta", dtype=torch.bfloat16) for _, shape in MODELS[model]()
    ]
    (whole,) = forecast(groups_of(model, tensors), layout_on(str(processes)), options)
    firsts = {shared.numbers[0]: shared for shared in whole.shared}

    def assign_owners(
        matrices: Sequence[MatrixSpec], kinds: Sequence[MatrixKind], *_: object
    ) -> OwnerAssignment:
        found, number = OwnerAssignment([], [], [], []), 0
        known: dict[MatrixKind, list[MatrixKind]] = {}
        for matrix, kind in zip(matrices, kinds, strict=True):
            parts, part_kinds = [matrix], [kind]
            if number in firsts:
                part, ranks = whole.matrices[number].part, firsts[number].ranks
                assert part is not None
                parts = parts_of(matrix, len(ranks), by_columns=part.by_columns)
                found.shared.append(firsts[number])
                if kind not in known:
                    known[kind] = [MatrixKind(kind.spec, p, kind.table) for p in parts]
                part_kinds = known[kind]
            found.matrices.extend(parts)
            found.kinds.extend(part_kinds)
            number += len(parts)
        found.owners.extend(whole.owners)
        return found

    return assign_owners


def optimizer_on(
    rank: int, processes: int, model: str, narrow: int, node_size: int
) -> tuple[pl.SpectralOptimizer, Timed]:
    """The optimizer of one process, with gradients."""
    plan_module.assign_owners = ASSIGNED  # also where another model was measured before
    plan_module.assign_owners = owners_of_the_model(model, processes, Options(node_size=node_size))
    step_module.directions_of_parts = lambda jobs, lines, by_columns: [job.matrix for job in jobs]
    mesh = init_device_mesh("cpu", (processes,))
    shapes = [shape for _, shape in MODELS[model]()]
    stack = nn.Module()
    stack.weights = nn.ParameterList(
        nn.Parameter(torch.zeros(*shape[:-1], max(1, shape[-1] // narrow), dtype=torch.bfloat16))
        for shape in shapes
    )
    fully_shard(stack, mesh=mesh)
    for p in stack.parameters():
        p.grad = torch.zeros_like(p)
    options = Options(
        bucket_bytes=Options().bucket_bytes // narrow, sum_weight=1e9, node_size=node_size
    )
    executor = Timed(inner=Free(), options=options)
    groups = groups_of(model, list(stack.parameters()))
    return pl.SpectralOptimizer(groups, lr=0.02, executor=executor), executor


def busy_rank(plan: ShardedPlan) -> int:
    """The process that owns most matrices, of equal ones the one that sends most."""
    moved = traffic(plan)
    owned = [plan.owners.count(rank) for rank in range(plan.size)]
    return max(range(plan.size), key=lambda rank: (owned[rank], moved[rank].sent))


class Done:
    """Handle of a collective that is done."""

    def wait(self) -> None:
        pass


def start_exchange(
    sent: Tensor, received: Tensor, outgoing: list[int], incoming: list[int], group: Any
) -> collectives.InFlight:
    """As in `collectives`; the fake group refuses a process that receives and sends nothing."""
    if len(sent) or not any(incoming):
        return STARTED(sent, received, outgoing, incoming, group)
    return collectives.InFlight(received.zero_(), sent, Done())


STARTED = collectives.start_exchange


def on_fake_processes(rank: int, processes: int, function: Callable[[], Any]) -> Any:
    """The result of a function on one of so many processes."""
    collectives.start_exchange = start_exchange
    dist.init_process_group("fake", rank=rank, world_size=processes, store=FakeStore())
    try:
        return function()
    finally:
        dist.destroy_process_group()
        collectives.start_exchange = STARTED


def measure(
    model: str, processes: int, narrow: int, repeats: int, node_size: int
) -> dict[str, Any]:
    """Host times of the busiest process in milliseconds."""

    def plan() -> ShardedPlan:
        optimizer, executor = optimizer_on(0, processes, model, narrow, node_size)
        optimizer.step()
        (found,) = executor.plans()
        return found

    rank = busy_rank(on_fake_processes(0, processes, plan))

    def steps() -> dict[str, Any]:
        optimizer, executor = optimizer_on(rank, processes, model, narrow, node_size)
        whole = []
        for _ in range(repeats + 2):
            start = time.process_time()
            optimizer.step()
            whole.append(1e3 * (time.process_time() - start))
        (plan,) = executor.plans()
        times = [1e3 * s for s in executor.__dict__["seconds"][2:]]
        return {
            "model": model,
            "processes": processes,
            "rank": rank,
            "owned": plan.owners.count(rank),
            "shared": len(plan.shared),
            "node_size": node_size,
            "buckets": len(plan.buckets),
            "sharded_ms": statistics.median(times),
            "sharded_most_ms": max(times),
            "step_ms": statistics.median(whole[2:]),
            "first_step_ms": whole[0],
        }

    found: dict[str, Any] = on_fake_processes(rank, processes, steps)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="llama-3-8b")
    parser.add_argument("--processes", type=int, nargs="+", default=[512, 1024, 4096])
    parser.add_argument("--width", type=int, default=256, help="part of the columns that is kept")
    parser.add_argument("--node-size", type=int, default=Options().node_size, help="of the plan")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/plans-at-scale"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = Table("model", "processes", "owned", "shared", "buckets")
    for column in ("ms in Sharded", "at most", "ms a step", "ms the first"):
        table.add_column(column, justify="right")
    records = []
    for processes in options.processes:
        r = measure(options.model, processes, options.width, options.repeats, options.node_size)
        records.append(r)
        times = (r["sharded_ms"], r["sharded_most_ms"], r["step_ms"], r["first_step_ms"])
        counts = (processes, r["owned"], r["shared"], r["buckets"])
        table.add_row(options.model, *map(str, counts), *(f"{t:.1f}" for t in times))
    Console(width=None if Console().is_terminal else 120).print(table)
    (options.out / f"host-{options.model}.json").write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
