"""Forecast of an optimizer step on GPUs: a roofline over the operators that it runs.

    python -m benchmarks.gpu_forecast                    # all models and devices, minutes
    python -m benchmarks.gpu_forecast --models experts --only "Muon,torch.optim.Muon"

No GPU is used. Operators are recorded on fake CUDA tensors (`benchmarks/fake_cuda.py`), once per
compute capability. A product takes the longer of its flops over the rate at its shape and its bytes
over the bandwidth; other operators take their bytes over the bandwidth; none takes less than
`KERNEL`. That sum is the time in a CUDA graph. Without one a step takes at least `LAUNCH` per
operator, the time that the host needs to issue it.

`DEVICES` and the constants below it are all assumptions, with their sources. What follows from them
is a forecast: nothing here was measured. `make gpu-report` measures.

Writes a JSON file and a picture.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import polarlight as pl
from benchmarks.command_line import recorded_command
from benchmarks.fake_cuda import PRODUCTS, Operation, Record, fake_cuda
from benchmarks.launches import ours, step_records, torch_muon
from benchmarks.parameter_sets import SETS
from polarlight import NonFinite
from polarlight.lab.report.style import legend, styles, tidy
from polarlight.lab.train.environment import versions

OUT = Path(__file__).parent / "results" / "gpu_forecast"


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet, dense rates.

    Attributes:
        half: Flops per second in bfloat16 and float16.
        single: Flops per second in float32, without TF32.
        bandwidth: Bytes per second of its memory.
        processors: Streaming multiprocessors.
        capability: Compute capability.
        source: Where the numbers are from.
    """

    half: float
    single: float
    bandwidth: float
    processors: int
    capability: tuple[int, int]
    source: str


DEVICES = {
    "A100": Device(312e12, 19.5e12, 2.039e12, 108, (8, 0), "NVIDIA A100 80 GB SXM data sheet"),
    "H100": Device(989e12, 67e12, 3.35e12, 132, (9, 0), "NVIDIA H100 SXM data sheet, dense"),
    "H200": Device(989e12, 67e12, 4.8e12, 132, (9, 0), "NVIDIA H200 SXM data sheet, dense"),
    "B200": Device(2250e12, 80e12, 8.0e12, 148, (10, 0), "NVIDIA HGX B200 at 1000 W, dense"),
}

PEAK = 0.75
"""Fraction of the rate that a large product reaches. Assumed."""
TILE = (128, 256)
"""Rows and columns of a product that one multiprocessor computes at a time. Assumed."""
DEPTH = 256
"""Inner length at which a product reaches half of its speed. Assumed."""
STREAM = 0.85
"""Fraction of the bandwidth that elementwise operators reach. Assumed."""
KERNEL = 2e-6
"""Seconds that the shortest kernel takes in a CUDA graph. Assumed."""
LAUNCH = 6e-6
"""Seconds of the host per operator. Assumed; the driver alone is reported to take 4 to 6 us
(susun-blog.com/blog/pegainfer-3-cuda-graph)."""
DECOMPOSITION = 0.02
"""Fraction of the float32 rate that QR and eigenvalue decompositions reach. Assumed."""

_LLAMA_LAYER = [(4096, 4096)] * 2 + [(1024, 4096)] * 2 + [(14336, 4096)] * 2 + [(4096, 14336)]
MODELS = {
    "GPT-2 small": SETS["gpt2-small"],
    "Qwen3-0.6B": SETS["qwen3-0.6b/14"] * 14,
    "Llama-3-8B, 2 layers": _LLAMA_LAYER * 2,
    "64 experts": [(1024, 512)] * 64,
}
"""Hidden matrices."""


def release(params: Any) -> Any:
    """Aurora as its release computes it: per matrix, two polar factors of twelve steps."""
    twelve = pl.linalg.NewtonSchulz(pl.linalg.schedules.SIMPLE_QUINTIC)
    rule = pl.rules.aurora(pl.rules.BalancedPolar(twelve, 2, 0.5), side=pl.stages.Side.LONG_AXIS)
    options = {"weight_decay": 0.1, "executor": pl.OneByOne()}
    return pl.SpectralOptimizer(params, lr=0.02, rule=rule, **options)


def fused_adamw(params: Any) -> Any:
    return torch.optim.AdamW(params, lr=1e-3, weight_decay=0.1, fused=True)


@dataclass(frozen=True)
class Entry:
    """An optimizer of the forecast.

    Attributes:
        make: Makes it for a list of matrices.
        guarded: Whether it has a guard against non-finite gradients; the default one is used.
        by_matrix: Whether it takes one matrix after another: one of each shape is recorded.
        refresh: Share of the steps that do more work, of SOAP's 0.1; the second of two recorded.
    """

    make: Callable[[Any], Any]
    guarded: bool = True
    by_matrix: bool = False
    refresh: float = 0.0


OPTIMIZERS = {
    "Muon": Entry(ours("Muon")),
    "NorMuon": Entry(ours("NorMuon")),
    "Aurora": Entry(ours("Aurora")),
    "SOAP": Entry(ours("SOAP", every=2), refresh=0.1),
    "release's Aurora": Entry(release, by_matrix=True),
    "torch.optim.Muon": Entry(torch_muon, guarded=False, by_matrix=True),
    "fused AdamW": Entry(fused_adamw, guarded=False),
}


def product_seconds(operation: Operation, device: Device) -> float:
    """Return the time of a product: waves of tiles over the multiprocessors, or its bytes."""
    out, left = operation.outputs[0], operation.inputs[-2]
    *batch, m, n = out.shape
    inner = left.shape[-1]
    tiles = prod(batch) * math.ceil(m / TILE[0]) * math.ceil(n / TILE[1])
    filled = tiles / (math.ceil(tiles / device.processors) * device.processors)
    rate = device.half if left.dtype.itemsize == 2 else device.single
    efficiency = PEAK * filled * inner / (inner + DEPTH)
    return max(2 * prod(out.shape) * inner / (rate * efficiency), bytes_seconds(operation, device))


def bytes_seconds(operation: Operation, device: Device) -> float:
    """Return the time of what an operator reads and writes."""
    return (operation.read + operation.written) / (STREAM * device.bandwidth)


def decomposition_seconds(operation: Operation, device: Device) -> float:
    """Return the time of a QR or eigenvalue decomposition, 4 and 9 n^3 flops."""
    *batch, m, n = operation.inputs[0].shape
    flops = prod(batch) * (9 if "eigh" in operation.name else 4) * m * n * min(m, n)
    return flops / (DECOMPOSITION * device.single)


def operation_seconds(operation: Operation, device: Device) -> float:
    """Return the time of one operator in a CUDA graph."""
    if operation.operator in PRODUCTS:
        seconds = product_seconds(operation, device)
    elif operation.operator in ("linalg_qr", "_linalg_eigh", "linalg_householder_product"):
        seconds = decomposition_seconds(operation, device)
    else:
        seconds = bytes_seconds(operation, device)
    return max(KERNEL, seconds)


Weighted = list[tuple[float, Record]]
"""Operators, and how often a step runs them on average."""


def forecast(records: Weighted, device: Device) -> dict[str, float]:
    """Return the mean seconds per step in a graph and without one."""
    timed = [
        (weight, operation_seconds(o, device), o.operator in PRODUCTS)
        for weight, record in records
        for o in record.operations
        if o.device != "cpu"
    ]
    graph = sum(weight * seconds for weight, seconds, _ in timed)
    launches = sum(weight for weight, _, _ in timed)
    products = sum(weight * seconds for weight, seconds, is_product in timed if is_product)
    return {
        "launches": round(launches, 1),
        "graph_seconds": graph,
        "eager_seconds": max(graph, launches * LAUNCH),
        "products_share": products / graph,
    }


def records_of(label: str, shapes: list[tuple[int, int]]) -> Weighted:
    """Return the operators of an optimizer's steps after the first one."""
    entry = OPTIMIZERS[label]
    policy = NonFinite.SKIP if entry.guarded else None

    def recorded(some: list[tuple[int, int]]) -> list[Record]:
        params = [nn.Parameter(torch.empty(shape, device="cuda")) for shape in some]
        return step_records(entry.make, params, steps=2 if entry.refresh else 1, policy=policy)

    if entry.by_matrix:
        return [(count, recorded([shape])[0]) for shape, count in Counter(shapes).items()]
    records = sorted(recorded(shapes), key=lambda record: record.launches)
    if entry.refresh:
        return list(zip((1 - entry.refresh, entry.refresh), records, strict=True))
    return [(1.0, records[0])]


Found = dict[str, dict[str, dict[str, dict[str, float]]]]
"""Numbers by model, optimizer and device."""


def forecasts(models: Iterable[str], labels: Iterable[str]) -> Found:
    """Return the forecast of every model, optimizer and device."""
    found: Found = {}
    pairs = [(model, label) for model in models for label in labels]
    for model, label in track(pairs, description="recording"):
        with fake_cuda():  # without quack, the operators are the same from 8.0 on
            records = records_of(label, MODELS[model])
        on = {name: forecast(records, device) for name, device in DEVICES.items()}
        found.setdefault(model, {})[label] = on
    return found


def draw(found: Found, path: Path) -> None:
    """Milliseconds per step by device, a panel per model, a line per optimizer."""
    fig = Figure(figsize=(9.0, 6.0), layout="constrained", facecolor="white")
    panels = fig.subplots(2, 2, squeeze=False).flatten()
    looks = styles(dict.fromkeys(label for some in found.values() for label in some))
    for ax, (model, by_label) in zip(panels, found.items(), strict=False):
        for label, on in by_label.items():
            names = list(on)
            for key, alpha in (("graph_seconds", 1.0), ("eager_seconds", 0.35)):
                ys = [1e3 * on[name][key] for name in names]
                look = looks[label]
                ax.plot(names, ys, color=look.colour, ls=look.dashes, marker="o", ms=3, alpha=alpha)
        ax.set_yscale("log")
        tidy(ax, model, ylabel="ms per step (forecast)")
    legend(fig, looks)
    FigureCanvasAgg(fig).print_png(path)


def table(found: Found) -> Table:
    shown = Table("model", "optimizer", *(f"{name}: graph, eager ms" for name in DEVICES))
    for model, by_label in found.items():
        for label, on in by_label.items():
            cells = [
                f"{1e3 * x['graph_seconds']:.2f}  {1e3 * x['eager_seconds']:.2f}"
                for x in on.values()
            ]
            shown.add_row(model, label, *cells)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="", help="separated by ;: " + "; ".join(MODELS))
    parser.add_argument("--only", default="", help="optimizers: " + ", ".join(OPTIMIZERS))
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the JSON file and picture")
    options = parser.parse_args()
    models = [x.strip() for x in options.models.split(";")] if options.models else list(MODELS)
    labels = options.only.split(",") if options.only else list(OPTIMIZERS)
    for kind, given, known in (("model", models, MODELS), ("optimizer", labels, OPTIMIZERS)):
        if unknown := [x for x in given if x not in known]:
            parser.error(f"no {kind} {', '.join(unknown)}; there are {', '.join(known)}")
    found = forecasts(models, labels)
    assumptions = {name: asdict(device) for name, device in DEVICES.items()}
    constants = {
        "peak": PEAK,
        "tile": TILE,
        "depth": DEPTH,
        "stream": STREAM,
        "kernel_seconds": KERNEL,
        "launch_seconds": LAUNCH,
        "decomposition": DECOMPOSITION,
    }
    about = {"command": recorded_command("benchmarks.gpu_forecast", sys.argv[1:]), **versions()}
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"about": about, "devices": assumptions, "constants": constants, "forecast": found}
    (options.out / "forecast.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(found, options.out / "forecast.png")
    Console(width=150).print(table(found))


if __name__ == "__main__":
    main()
