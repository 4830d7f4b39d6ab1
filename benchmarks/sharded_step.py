"""A sharded optimizer step, ours and torch's: collectives, bytes and time, in one run.

    python -m benchmarks.sharded_step                      # two and four processes over gloo, here
    python -m benchmarks.sharded_step --worlds 2 --repeats 20

The matrices of one layer of GPT-2 small under `fully_shard` (on two dimensions: HSDP) or, as FSDP
x TP lays them out, as `_StridedShard` beside `Shard`. Collectives are counted where torch sends
them, bytes as what one process receives; DTensor takes other ones on GPUs (`S(0) -> S(1)` is an
all-gather on CPUs). Optimizers step in turn, medians over the rounds but the first.

    python -m benchmarks.sharded_step --single             # what one process pays for all this

times the package's import and counts what it imports of `torch.distributed`, and a step of plain
tensors with and without `Sharded` around it.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

import polarlight as pl
from benchmarks.command_line import recorded_command
from benchmarks.memory import PeakMemory
from benchmarks.optimizer_step import commit
from benchmarks.parameter_sets import SETS, parameters
from polarlight.execution.heap import raise_mmap_threshold
from polarlight.lab.train.environment import hardware, versions

OUT = Path(__file__).parent / "results" / "sharded_step"
OPTIMIZERS: dict[str, Callable[[list], Optimizer]] = {
    "torch.optim.Muon": lambda params: torch.optim.Muon(params, lr=0.02, weight_decay=0.0),
    "polarlight.Muon": lambda params: pl.Muon(params, lr=0.02),
    "polarlight.Aurora": lambda params: pl.Aurora(params, lr=0.02),
}
BASELINE = "torch.optim.Muon"
NO_COLLECTIVE = re.compile("wait|wrap")
LAYOUTS = {2: ["FSDP2"], 4: ["FSDP2", "HSDP 2 x 2", "FSDP x TP 2 x 2"]}


class Collectives(TorchDispatchMode):
    """Counts collectives, and the bytes that one process receives in them."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.bytes = 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        kind = func.overloadpacket.__name__
        if func.namespace in ("c10d", "_c10d_functional") and not NO_COLLECTIVE.search(kind):
            self.count += 1
            self.bytes += received(kind, args, result)
        return result


def received(kind: str, args: Any, result: Any) -> float:
    """Bytes that arrive at one process, by the collective's best-known algorithm."""
    if kind.startswith(("all_gather", "_allgather")):
        out, given = (result, args[0]) if isinstance(result, torch.Tensor) else args[:2]
        return out.nbytes - given.nbytes
    if kind.startswith(("all_reduce", "allreduce")):
        x = args[0] if isinstance(args[0], torch.Tensor) else args[0][0]
        return 2 * x.nbytes * (1 - 1 / group_size(args))
    if kind.startswith(("reduce_scatter", "_reduce_scatter")):
        return args[0].nbytes - result.nbytes
    if kind.startswith("alltoall"):
        return args[0].nbytes  # what stays is not part of it
    if kind.startswith("all_to_all"):
        return result.nbytes * (1 - 1 / group_size(args))
    raise ValueError(f"{kind} is not counted yet")


def group_size(args: Any) -> int:
    for x in args:
        if isinstance(x, str) and x not in ("sum", "max", "avg"):
            return dist.distributed_c10d._resolve_process_group(x).size()
        if isinstance(x, torch.ScriptObject):
            return dist.ProcessGroup.unbox(x).size()
    return dist.get_world_size()


def laid_out(name: str, layout: str) -> list[nn.Parameter]:
    """Matrices as the layout has them, with gradients beside them."""
    whole = parameters(name, "cpu")
    if layout == "FSDP x TP 2 x 2":
        mesh = init_device_mesh("cpu", (2, 2))
        both = [_StridedShard(0, split_factor=2), Shard(0)]
        sharded = [nn.Parameter(distribute_tensor(p.detach(), mesh, both)) for p in whole]
    else:
        size = dist.get_world_size()
        hybrid = layout.startswith("HSDP")
        shape, names = ((2, 2), ("copy", "shard")) if hybrid else ((size,), ("shard",))
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        model = nn.ModuleList(nn.Linear(p.shape[1], p.shape[0], bias=False) for p in whole)
        with torch.no_grad():
            for linear, p in zip(model, whole, strict=True):
                linear.weight.copy_(p)
        for linear in model:
            fully_shard(linear, mesh=mesh)
        sharded = list(model.parameters())
    for p, q in zip(sharded, whole, strict=True):
        p.grad = distribute_tensor(q.grad, p.device_mesh, p.placements)
    return sharded


def seconds(optimizer: Optimizer) -> float:
    dist.barrier()
    start = time.perf_counter()
    optimizer.step()
    dist.barrier()
    return time.perf_counter() - start


def measured(name: str, layout: str, repeats: int) -> dict[str, dict[str, float]]:
    """Collectives, bytes and seconds of each optimizer's step."""
    raise_mmap_threshold()  # as the activations of a larger model do
    optimizers = {label: make(laid_out(name, layout)) for label, make in OPTIMIZERS.items()}
    found: dict[str, dict[str, float]] = {}
    for label, optimizer in optimizers.items():
        optimizer.step()  # plans are made, and compared, at the first one
        with Collectives() as moved:
            optimizer.step()
        found[label] = {"collectives": moved.count, "received": moved.bytes}
    times: dict[str, list[float]] = {label: [] for label in optimizers}
    for _ in range(repeats + 1):
        for label, optimizer in optimizers.items():
            times[label].append(seconds(optimizer))
    for label, some in times.items():
        found[label] |= {"seconds": median(some[1:]), "least": min(some[1:]), "most": max(some[1:])}
        found[label]["ratio"] = found[label]["seconds"] / median(times[BASELINE][1:])
    return found


def process(rank: int, world: int, port: int, name: str, repeats: int, found: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    results = {layout: measured(name, layout, repeats) for layout in LAYOUTS[world]}
    if rank == 0:
        found.put(results)
    dist.destroy_process_group()


def on_processes(world: int, name: str, repeats: int) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = mp.get_context("spawn").SimpleQueue()
    mp.spawn(process, (world, port, name, repeats, found), nprocs=world)
    return {f"{world} processes, {layout}": r for layout, r in found.get().items()}


IMPORT = """
import sys, time
import torch
before = set(sys.modules)
start = time.perf_counter()
import polarlight
took = time.perf_counter() - start
new = set(sys.modules) - before
print(took, len(new), sum(name.startswith("torch.distributed") for name in new))
"""


def single(name: str, repeats: int) -> dict[str, Any]:
    """Import, and steps of plain tensors with and without `Sharded`, in turn."""
    imports = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
        imports.append(tuple(map(float, done.stdout.split())))
    raise_mmap_threshold()  # as the activations of a larger model do
    optimizers = {"as it comes": pl.Muon(parameters(name, "cpu"), lr=0.02)}
    optimizers["Sharded around it"] = pl.Muon(parameters(name, "cpu"), lr=0.02)
    optimizers["Sharded around it"].executor = pl.Sharded()
    steps: dict[str, list[float]] = {label: [] for label in optimizers}
    for _ in range(repeats + 1):
        for label, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            steps[label].append(time.perf_counter() - start)
    extra = {}
    for label, optimizer in optimizers.items():
        with PeakMemory() as memory:
            optimizer.step()
        extra[label] = memory.peak
    return {
        "import seconds": median(took for took, _, _ in imports),
        "modules imported": int(imports[0][1]),
        "of torch.distributed": int(imports[0][2]),
        "step": {
            label: {"seconds": median(some[1:]), "extra_bytes": extra[label]}
            for label, some in steps.items()
        },
    }


def told(results: dict[str, Any]) -> Table:
    table = Table("optimizer", *(f"{case}: calls, MB in, ms, ratio" for case in results))
    for label in OPTIMIZERS:
        rows = [found[label] for found in results.values()]
        cells = (
            f"{r['collectives']}  {r['received'] / 1e6:.1f}  {r['seconds'] * 1e3:.0f}  "
            f"{r['ratio']:.2f}"
            for r in rows
        )
        table.add_row(label, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--set", default="gpt2-small/12", choices=SETS, help="matrices")
    parser.add_argument("--worlds", nargs="+", type=int, default=[2, 4], choices=LAYOUTS)
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--single", action="store_true", help="what one process pays, instead")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    about = {
        "command": recorded_command("benchmarks.sharded_step", sys.argv[1:]),
        "commit": commit(),
        "set": options.set,
        **versions(),
        **hardware(torch.device("cpu")),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    if options.single:
        found = single(options.set, options.repeats)
        print(json.dumps(found, indent=2))
    else:
        found = {}
        for world in options.worlds:
            found |= on_processes(world, options.set, options.repeats)
        Console(width=160).print(told(found))
    name = "single" if options.single else "gloo-" + "-".join(map(str, options.worlds))
    record = json.dumps({"about": about, "found": found}, indent=2)
    (options.out / f"{name}.json").write_text(record + "\n")


if __name__ == "__main__":
    main()
