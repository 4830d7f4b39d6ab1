"""Command `polarlight check-sharding`: compare sharded with unsharded training."""

import os
import socket
from collections.abc import Callable
from textwrap import fill
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from torch import nn
from torch.optim import Optimizer

from polarlight.diagnostics.sharding import Difference, check_sharding, table
from polarlight.lab.commands import options
from polarlight.lab.commands.console import say
from polarlight.lab.train.model import GPT
from polarlight.lab.train.parallel import Parallel, connected, kind_of, lay_out, share_work
from polarlight.lab.train.recipes import build, recipes, spec_of
from polarlight.lab.train.settings import PRESETS, Plan
from polarlight.routing.explain import explain
from polarlight.rules import REGISTERED

Case = tuple[nn.Module, nn.Module, Callable[[nn.Module], Optimizer]]
"""The model as one process has it, the same one sharded, and what makes either's optimizer."""


def check(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="Your own: called on every process, it returns the unsharded model, the same one "
            "sharded, and a function from a model to its optimizer. Default: the trainer's model.",
        ),
    ] = None,
    optimizers: Annotated[
        str, typer.Option(help=f"For the trainer's model: {', '.join(recipes())}.")
    ] = "aurora,normuon,symmetric",
    parallel: Annotated[
        str, typer.Option(help=f"For the trainer's model: {', '.join(Parallel)}.")
    ] = ",".join(Parallel),
    model: Annotated[str, typer.Option(help="dense or moe.")] = "dense",
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 5,
    processes: Annotated[
        int, typer.Option(help="Processes to start here; torchrun's own take precedence.")
    ] = 2,
) -> None:
    """Train a model sharded and unsharded with equal gradients; compare every parameter.

    Prints the largest difference per parameter; exits with status 1 if one exceeds rounding.
    Without a GPU it runs over gloo.

    ```
    polarlight check-sharding
    polarlight check-sharding --parallel hsdp,tp --processes 4 --optimizers muon
    polarlight check-sharding my_models:on_my_mesh --processes 4
    torchrun --nproc-per-node 8 -m polarlight check-sharding my_models:on_my_mesh
    ```

    ```python
    def on_my_mesh():
        whole, sharded = Model(seed=0), Model(seed=0)
        fully_shard(sharded, mesh=init_device_mesh("cpu", (4,)))
        return whole, sharded, lambda model: polarlight.Aurora(model, lr=0.02)
    ```
    """
    if steps < 1 or processes < 1:
        raise ValueError(f"--steps and --processes must be >= 1, got {steps} and {processes}")
    if target is not None:
        options.function_at(target)  # also puts its folder on the path of processes started here
    cases: list[tuple[str, ...]] = [("target", target)] if target else []
    if target is None:
        kinds = [kind_of(kind.strip()) for kind in parallel.split(",")]
        shape = str(options.architecture(model))
        cases = [(shape, n, kind) for n in options.optimizers(optimizers) for kind in kinds]
    started = "RANK" in os.environ
    same = _compare(cases, steps) if started else _start(processes, cases, steps)
    if not same:
        raise typer.Exit(1)


def _start(processes: int, cases: list[tuple[str, ...]], steps: int) -> bool:
    """Run the comparison on processes of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing: Any = torch.multiprocessing
    found = multiprocessing.get_context("spawn").SimpleQueue()
    modules = list({entry.make.__module__ for entry in REGISTERED.values()})
    arguments = (processes, port, cases, steps, modules, found)
    try:
        multiprocessing.spawn(_process, arguments, nprocs=processes)
    except multiprocessing.ProcessRaisedException:
        if found.empty():  # a fault of ours: with its traceback
            raise
    answer = found.get()
    if isinstance(answer, str):
        raise ValueError(answer)
    return bool(answer)


def _process(
    rank: int,
    size: int,
    port: int,
    cases: list[tuple[str, ...]],
    steps: int,
    modules: list[str],
    found: Any,
) -> None:
    """Compare as one of the processes; `modules` register the rules of plugins.

    Put into `found` the first process's result, or the text of a ValueError of any.
    """
    torch.set_num_threads(1)
    for module in modules:
        options.module_named(module)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        same = _compare(cases, steps)
    except ValueError as error:
        found.put(str(error))
        raise
    if rank == 0:
        found.put(same)


def _compare(cases: list[tuple[str, ...]], steps: int) -> bool:
    """Compare every case; the first process prints. Return True if all are the same."""
    same = True
    with connected():
        for case in cases:
            whole, sharded, make = _case(case)
            found = check_sharding(whole, sharded, make, steps=steps)
            same &= all(difference.same for difference in found)
            shared = _sharing(make(sharded)) if case[0] == "target" else []
            if dist.get_rank() == 0:
                say("\n\n".join([_told(case, found, steps), *shared]))
    return same


def _sharing(optimizer: Optimizer) -> list[str]:
    """Return the shared work per mesh in sentences; nothing of an optimizer without rules."""
    if not any("rule" in group for group in optimizer.param_groups):
        return []
    return [fill(str(shared), 100) for shared in explain(optimizer).sharing]


def _told(case: tuple[str, ...], found: list[Difference], steps: int) -> str:
    """Format a table, or one line if the trainer's own model does not differ."""
    what = f"{', '.join(case)} on {dist.get_world_size()} processes, {steps} steps"
    if case[0] == "target" or not all(difference.same for difference in found):
        return f"{what}\n{table(found)}"
    worst = max(found, key=lambda d: d.largest / d.allowed)
    said = f"{worst.largest:.1e} of {worst.allowed:.0e}, {worst.name}"
    return f"{what}: same ({len(found)} parameters; largest difference {said})"


def _case(case: tuple[str, ...]) -> Case:
    """Return the models of a case and a function that makes their optimizers."""
    if case[0] == "target":
        made: Case = options.function_at(case[1])()
        if not isinstance(made, tuple) or len(made) != 3 or not callable(made[2]):
            raise ValueError(
                f"{case[1]} must return (the unsharded model, the same one sharded, a function "
                f"from a model to its optimizer), got {type(made).__name__}"
            )
        return made
    architecture, name, kind = case
    plan = _small(architecture)
    whole, sharded = GPT(plan.model(64)), GPT(plan.model(64))
    lay_out(sharded, Parallel(kind))
    spec = spec_of(name, seed=0)

    def make(model: nn.Module) -> Optimizer:
        shared = Parallel(kind) if model is sharded else None
        return share_work(build(model, spec), shared)

    return whole, sharded, make


def _small(architecture: str) -> Plan:
    changes = {"width": 48, "layers": 2, "heads": 4, "architecture": architecture}
    return options.plan(next(iter(PRESETS)), [], changes)
