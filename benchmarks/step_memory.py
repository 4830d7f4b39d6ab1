"""Memory that a step takes beside weights, gradients and state, on CPUs and on fake GPUs.

    python -m benchmarks.step_memory                            # minutes
    python -m benchmarks.step_memory --only Muon --sets experts

The peak is the largest sum of bytes of tensors that the third step makes and still holds
(`benchmarks/memory.py`). Steps on a CPU are real; on a GPU they run on fake CUDA tensors
(`benchmarks/fake_cuda.py`). On the CPU SOAP takes a layer of GPT-2 in place of the whole model.
Writes a JSON file and prints a table.
"""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import polarlight as pl
from benchmarks.command_line import recorded_command
from benchmarks.fake_cuda import fake_cuda
from benchmarks.gpu_forecast import MODELS
from benchmarks.launches import DECAY, ours
from benchmarks.memory import PeakMemory
from benchmarks.parameter_sets import SETS
from polarlight.execution.batched import MOST_BYTES, MOST_BYTES_ON_CPU
from polarlight.lab.train.environment import versions

OUT = Path(__file__).parent / "results" / "step_memory.json"
SHAPES = {"gpt2-small": SETS["gpt2-small"], "experts": MODELS["64 experts"]}
STACK = {"cpu": MOST_BYTES_ON_CPU, "cuda": MOST_BYTES}
"""Bytes of the largest stack of parameters, by device."""


def adamw(params: Any) -> Any:
    rule = pl.rules.AdamWRule()
    return pl.SpectralOptimizer(params, lr=1e-3, weight_decay=DECAY, rule=rule)


OPTIMIZERS = {name: ours(name) for name in ("Muon", "NorMuon", "Aurora", "SOAP")} | {"AdamW": adamw}


def peak_of_step(
    make: Callable[[Any], Any], shapes: list[tuple[int, int]], device: str
) -> tuple[int, int]:
    """Return the bytes of one momentum, and the most that the third step holds beside its state.

    Args:
        make: Makes the optimizer.
        shapes: Shapes of its parameters.
        device: "cpu", or "cuda" for fake tensors.
    """
    with fake_cuda() if device == "cuda" else nullcontext():
        fill = torch.empty if device == "cuda" else torch.randn
        params = [nn.Parameter(fill(shape, device=device)) for shape in shapes]
        optimizer = make(params)
        for _ in range(3):
            for p in params:
                p.grad = fill(p.shape, device=device)
            with PeakMemory() as memory:
                optimizer.step()
        return sum(p.numel() * p.element_size() for p in params), memory.peak


def measured(labels: list[str], sets: list[str]) -> list[dict[str, Any]]:
    """Return a row per device, set and optimizer."""
    rows = []
    for device, name, label in track(
        [(d, s, x) for d in STACK for s in sets for x in labels], description="stepping"
    ):
        slow = device == "cpu" and label == "SOAP" and name == "gpt2-small"
        shapes = SETS["gpt2-small/12"] if slow else SHAPES[name]
        momentum, extra = peak_of_step(OPTIMIZERS[label], shapes, device)
        largest = max(m * n * 4 for m, n in shapes)
        rows.append(
            {
                "device": device,
                "set": "gpt2-small/12" if slow else name,
                "optimizer": label,
                "momentum_bytes": momentum,
                "extra_bytes": extra,
                "stacks": round(extra / max(STACK[device], largest), 2),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table("device", "set", "optimizer", "momentum, MiB", "step, MiB", "step, stacks")
    for row in rows:
        sizes = (f"{row[key] / 2**20:.0f}" for key in ("momentum_bytes", "extra_bytes"))
        texts = row["device"], row["set"], row["optimizer"]
        shown.add_row(*texts, *sizes, f"{row['stacks']:.2f}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(OPTIMIZERS), help="optimizers")
    parser.add_argument("--sets", default=",".join(SHAPES), help="sets of parameters")
    parser.add_argument("--out", type=Path, default=OUT, help="the JSON file")
    options = parser.parse_args()
    labels, sets = options.only.split(","), options.sets.split(",")
    for kind, given, known in (("optimizer", labels, OPTIMIZERS), ("set", sets, SHAPES)):
        if unknown := [x for x in given if x not in known]:
            parser.error(f"no {kind} {', '.join(unknown)}; there are {', '.join(known)}")
    rows = measured(labels, sets)
    about = {
        "command": recorded_command("benchmarks.step_memory", sys.argv[1:]),
        "stack_bytes": STACK,
        **versions(),
    }
    options.out.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")
    Console().print(table(rows))


if __name__ == "__main__":
    main()
