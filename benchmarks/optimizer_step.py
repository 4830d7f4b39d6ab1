"""Time and extra memory of an optimizer step, ours and others', interleaved on one machine.

    python -m benchmarks.optimizer_step                # make bench; minutes on two cores
    python -m benchmarks.optimizer_step --sets small --repeats 20
    python -m benchmarks.optimizer_step --only "polarlight.Aurora,torch's Muon in float32"

Every optimizer steps once per round, in turn; medians over the rounds but the first. Writes a JSON
file and a table. Others take part where they are installed (`pip install 'polarlight[bench]'`).
The release is Aurora as its release computes it: per matrix, two twelve-step polar factors. Where
bfloat16 is emulated, torch's algorithm in float32 stands for torch's Muon unless that is asked for.
"""

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.optim import Optimizer

import polarlight as pl
from benchmarks.command_line import recorded_command
from benchmarks.memory import PeakMemory
from benchmarks.parameter_sets import SETS, parameters
from polarlight.execution.heap import raise_mmap_threshold
from polarlight.lab.train.environment import hardware, versions
from polarlight.linalg.precision import cpu_capabilities, has_fast_bfloat16

OUT = Path(__file__).parent / "results" / "optimizer_step"
TWELVE = pl.linalg.NewtonSchulz(pl.linalg.schedules.SIMPLE_QUINTIC)


def release(params: list) -> Optimizer:
    rule = pl.rules.aurora(pl.rules.BalancedPolar(TWELVE, 2, 0.5), side=pl.stages.Side.LONG_AXIS)
    return pl.SpectralOptimizer(params, rule=rule, executor=pl.OneByOne())


def in_float32(params: list) -> Optimizer:
    """Return torch's algorithm in the dtype that this machine multiplies fastest."""
    rule = pl.rules.muon(polar=pl.linalg.NewtonSchulz(pl.linalg.schedules.JORDAN, torch.float32))
    return pl.SpectralOptimizer(params, rule=rule, executor=pl.OneByOne())


def pytorch_optimizer(params: list) -> Optimizer:
    groups = [{"params": params, "use_muon": True}]
    return importlib.import_module("pytorch_optimizer").Muon(groups, lr=0.02)


def heavyball(params: list) -> Optimizer:
    return importlib.import_module("heavyball").Muon(params, lr=0.02)


def compiled_muon(params: list, weight_decay: float = 0.0) -> Optimizer:
    """Return torch's Muon with its whole step compiled, which takes a minute for 200 matrices.

    A tensor for the learning rate would be read on the host and break the graph.
    """
    optimizer = torch.optim.Muon(params, lr=0.02, weight_decay=weight_decay)
    # inductor's harness would quote our `--only`, with its apostrophes, as a Python string
    compiled = torch.compile(optimizer.step, options={"benchmark_harness": False})
    optimizer.step = compiled  # type: ignore[method-assign]
    return optimizer


OPTIMIZERS: dict[str, Callable[[list], Optimizer]] = {
    "torch.optim.Muon": lambda params: torch.optim.Muon(params, lr=0.02, weight_decay=0.0),
    "torch.optim.Muon compiled": compiled_muon,
    "polarlight.Muon": pl.Muon,
    "polarlight.NorMuon": pl.NorMuon,
    "polarlight.Aurora": pl.Aurora,
    "release's Aurora": release,
    "pytorch_optimizer.Muon": pytorch_optimizer,
    "heavyball.Muon": heavyball,
    "torch's Muon in float32": in_float32,
}
BASELINE = "torch.optim.Muon"
INSTEAD = "torch's Muon in float32"
"""What ratios are to; the second where the first takes no part."""

IN_BFLOAT16 = {BASELINE, "torch.optim.Muon compiled", "pytorch_optimizer.Muon", "heavyball.Muon"}
"""Those that multiply in bfloat16 on any device: hours, on large matrices, where it is emulated."""

COMPILED = {"torch.optim.Muon compiled", "heavyball.Muon"}
"""Those whose memory cannot be measured: nothing looks into their step."""


def chosen(only: str, in_hardware: bool) -> list[str]:
    """The labels of those that are asked for; of an empty text those that suit the device.

    Raises:
        ValueError: If there is no such optimizer, or none of the two that ratios are to.
    """
    if not only:
        unfit = set() if in_hardware else IN_BFLOAT16
        return [label for label in OPTIMIZERS if label not in unfit]
    labels = only.split(",")
    unknown = [label for label in labels if label not in OPTIMIZERS]
    if unknown:
        raise ValueError(f"no optimizer {', '.join(unknown)}; there are {', '.join(OPTIMIZERS)}")
    if not {BASELINE, INSTEAD} & {*labels}:
        raise ValueError(f"ratios are to {BASELINE} or {INSTEAD}: ask for one of them, got {only}")
    return labels


def prepared(name: str, device: str, labels: Sequence[str]) -> dict[str, Optimizer]:
    """Return the installed optimizers, each with its own parameters, after one step."""
    found = {}
    for label in labels:
        try:
            found[label] = OPTIMIZERS[label](parameters(name, device))
        except ModuleNotFoundError as missing:
            print(f"{label} is left out: {missing.name} is not installed", file=sys.stderr)
    return found


def seconds(optimizer: Optimizer, device: str) -> float:
    start = time.perf_counter()
    optimizer.step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def gradients_of(optimizer: Optimizer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    params = (p for group in optimizer.param_groups for p in group["params"])
    return [(p, p.grad) for p in params]


def measured(
    name: str, device: str, repeats: int, labels: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Median seconds, ratio to the baseline and peak extra bytes of each optimizer."""
    raise_mmap_threshold()  # as the activations of a larger model do
    optimizers = prepared(name, device, labels)
    kept = {label: gradients_of(optimizer) for label, optimizer in optimizers.items()}
    times: dict[str, list[float]] = {label: [] for label in optimizers}
    for _ in track(range(repeats + 1), description=name):
        for label, optimizer in optimizers.items():
            for p, gradient in kept[label]:  # some clear it
                p.grad = gradient
            times[label].append(seconds(optimizer, device))
    medians = {label: median(some[1:]) for label, some in times.items()}
    baseline = medians.get(BASELINE) or medians[INSTEAD]
    result = {}
    for label, optimizer in optimizers.items():
        extra = None
        if label not in COMPILED:
            with PeakMemory() as memory:
                optimizer.step()
            extra = memory.peak
        result[label] = {
            "seconds": medians[label],
            "least": min(times[label][1:]),
            "most": max(times[label][1:]),
            "ratio": medians[label] / baseline,
            "extra_bytes": extra,
        }
    return result


def multiplies_bfloat16(device_type: str) -> bool:
    """Return whether bfloat16 products run in hardware, be they slower than float32 or not."""
    units = ("avx512_bf16", "amx_bf16")
    if device_type == "cpu":
        return any(cpu_capabilities().get(unit) for unit in units)
    return has_fast_bfloat16(device_type)


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", default="gpt2-small,qwen3-0.6b/14,small", help=", ".join(SETS))
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--only", default="", help="optimizers: " + ", ".join(OPTIMIZERS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    in_hardware = multiplies_bfloat16(torch.device(options.device).type)
    try:
        labels = chosen(options.only, in_hardware)
    except ValueError as error:
        parser.error(str(error))
    if not (in_hardware or options.only):
        print(
            f"bfloat16 is emulated here: {', '.join(sorted(IN_BFLOAT16))} are left out, which "
            f"would take hours, and ratios are to {INSTEAD}; --only measures what it names",
            file=sys.stderr,
        )
    about = {
        "command": recorded_command("benchmarks.optimizer_step", sys.argv[1:]),
        "commit": commit(),
        **versions(),
        **hardware(torch.device(options.device)),
    }
    found = {
        name: measured(name, options.device, options.repeats, labels)
        for name in options.sets.split(",")
    }
    options.out.mkdir(parents=True, exist_ok=True)
    kind = options.device.split(":")[0]
    record = json.dumps({"about": about, "sets": found}, indent=2)
    (options.out / f"{kind}.json").write_text(record + "\n")
    table = Table("optimizer", *(f"{name}: ms, ratio, extra MB" for name in found))
    for label in OPTIMIZERS:
        cells = []
        for results in found.values():
            r = results.get(label)
            extra = (
                "-" if r is None or r["extra_bytes"] is None else f"{r['extra_bytes'] / 1e6:.0f}"
            )
            cells.append(f"{r['seconds'] * 1e3:.0f}  {r['ratio']:.2f}  {extra}" if r else "-")
        table.add_row(label, *cells)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
