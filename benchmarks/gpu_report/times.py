"""Times of steps and of symmetric products on a GPU, interleaved, beside the forecast."""

import json
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor, nn

import polarlight as pl
from benchmarks.gpu_forecast import MODELS, OPTIMIZERS
from benchmarks.gpu_report.report import Found, Report, within
from benchmarks.launches import peer
from benchmarks.optimizer_step import compiled_muon
from polarlight import NonFinite
from polarlight.lab.report.style import figure, tidy

TINY = {"tiny": [(64, 32)] * 4 + [(32, 32)] * 4}
FORECAST = Path(__file__).parents[1] / "results" / "gpu_forecast" / "forecast.json"
WARM_UP = 2
"""Steps before the first one that is measured."""


def makers(report: Report) -> dict[str, Callable[[Any], Any]]:
    """Return the optimizers of the step times; the one that takes long to compile is the last."""
    found = {label: entry.make for label, entry in OPTIMIZERS.items()}
    if not report.on_cuda:
        found = {label: found[label] for label in ("Muon", "Aurora")}
        return found | {"float32 AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-3)}
    if find_spec("heavyball"):
        found["heavyball.Muon"] = peer("heavyball", "Muon")

    def unguarded(params: Any) -> Any:
        return pl.Aurora(params, lr=0.02, weight_decay=0.1, nonfinite=NonFinite.PROPAGATE)

    def in_one_graph(params: Any) -> Any:
        return compiled_muon(params, weight_decay=0.1)

    return found | {"Aurora, no guard": unguarded, "torch.optim.Muon, compiled": in_one_graph}


def steps(report: Report, found: Found) -> None:
    """Medians of interleaved step times, with the time of the host, beside the forecast."""
    models = TINY if report.tiny else MODELS
    forecasts = json.loads(FORECAST.read_text())["forecast"] if FORECAST.exists() else {}
    found["forecast"] = {model: forecasts[model] for model in models if model in forecasts}
    measured = found["measured"] = {}
    for number, (model, shapes) in enumerate(models.items()):
        row = measured[model] = {}
        seconds = report.left / (len(models) - number)
        row |= within(seconds, step_times, report, shapes, row) or {}


def step_times(report: Report, shapes: list[tuple[int, int]], row: Found) -> None:
    """Fill in milliseconds per step and of the host, and extra memory, by optimizer."""
    gradients, optimizers = random_matrices(report.device, shapes, seed=1), {}
    for label, make in makers(report).items():
        made = within(report.left / 4, warmed_up, report, make, shapes, gradients)
        if isinstance(made, dict):
            row[label] = made
        else:
            optimizers[label] = made
    times: dict[str, list[tuple[float, float]]] = {label: [] for label in optimizers}
    for _ in range(2 if report.tiny else 9):
        for label, optimizer in list(optimizers.items()):
            timed = within(report.left, timed_step, report, optimizer)
            if isinstance(timed, dict):
                row[label] = timed
                del optimizers[label]
            else:
                times[label].append(timed)
                row[label] = summary(times[label])
    for label, optimizer in optimizers.items():
        row[label]["extra_bytes"] = extra_memory(report, optimizer)


def random_matrices(device: torch.device, shapes: list[tuple[int, int]], seed: int) -> list[Tensor]:
    """Return normal matrices, made on the device: a host takes seconds for a model's."""
    generator = torch.Generator(device).manual_seed(seed)
    return [torch.randn(shape, generator=generator, device=device) for shape in shapes]


def warmed_up(
    report: Report,
    make: Callable[[Any], Any],
    shapes: list[tuple[int, int]],
    gradients: list[Tensor],
) -> Any:
    """Return an optimizer of weights of its own after its first steps; gradients are shared."""
    weights = random_matrices(report.device, shapes, seed=0)
    params = [nn.Parameter(W.mul_(0.02)) for W in weights]
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = gradient
    optimizer = make(params)
    for _ in range(WARM_UP):
        optimizer.step()
    report.synchronize()
    return optimizer


def timed_step(report: Report, optimizer: Any) -> tuple[float, float]:
    """Return the seconds of a step, and those until the host was done with it."""
    report.synchronize()
    start = time.perf_counter()
    optimizer.step()
    host = time.perf_counter() - start
    report.synchronize()
    return time.perf_counter() - start, host


def summary(seen: list[tuple[float, float]]) -> dict[str, float]:
    whole, host = zip(*seen, strict=True)
    return {
        "ms": 1e3 * statistics.median(whole),
        "host_ms": 1e3 * statistics.median(host),
        "least_ms": 1e3 * min(whole),
        "most_ms": 1e3 * max(whole),
    }


def extra_memory(report: Report, optimizer: Any) -> int | None:
    """Return the most bytes that a step allocates at a time; None on a CPU."""
    if not report.on_cuda:
        return None
    before = torch.cuda.memory_allocated(report.device)
    torch.cuda.reset_peak_memory_stats(report.device)
    optimizer.step()
    return torch.cuda.max_memory_allocated(report.device) - before


def quack(report: Report, found: Found) -> None:
    """Ratio of a symmetric product's time by quack-kernels to a plain one's, by side and batch."""
    if not report.on_cuda or find_spec("quack") is None:
        found["left_out"] = "needs a CUDA device and quack-kernels"
        return
    from polarlight.linalg.quack import symmetric_product

    for side in (512, 1024, 2048, 4096):
        for batch in (1, 8, 64):
            if side * side * batch > 2**28:
                continue
            A = torch.randn(batch, side, side, device=report.device, dtype=torch.bfloat16)
            ours = median_seconds(report, lambda A=A: symmetric_product(A, A.mT))
            plain = median_seconds(report, lambda A=A: A @ A.mT)
            flops = 2 * batch * side**3
            found[f"{batch} x {side}"] = {"flops": flops, "ratio": ours / plain, "plain_s": plain}


def median_seconds(report: Report, function: Callable[[], object], repeats: int = 9) -> float:
    times = []
    for _ in range(repeats + 2):
        report.synchronize()
        start = time.perf_counter()
        function()
        report.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def draw(report: Report, path: Path) -> None:
    """Bars of step times, with a mark at the forecast for the device if there is one."""
    result = report.parts.get("steps", {}).get("result", {})
    times = {
        model: bars
        for model, row in result.get("measured", {}).items()
        if (
            bars := {
                label: x["ms"] for label, x in row.items() if isinstance(x, dict) and "ms" in x
            }
        )
    }
    if not times:
        return
    name = torch.cuda.get_device_name(report.device) if report.on_cuda else ""
    fig, panels = figure(1.9 * len(times), len(times))
    for ax, (model, bars) in zip(panels, times.items(), strict=True):
        ax.barh(list(bars), list(bars.values()), color="#0072b2", height=0.6)
        for label, by_device in result["forecast"].get(model, {}).items():
            for device, numbers in by_device.items():
                if label in bars and device in name:
                    ax.plot([1e3 * numbers["eager_seconds"]], [label], "|", color="#d55e00", ms=14)
        tidy(ax, model, xlabel="ms per step; the mark is the forecast")
    FigureCanvasAgg(fig).print_png(path)
