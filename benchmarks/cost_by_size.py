"""Time of an optimizer step per useful flop, from 128 to 4096 wide, drawn.

    python -m benchmarks.cost_by_size

Useful flops are those of five plain Newton-Schulz steps, 5 (4 m n k + 2 k^3), whatever is really
computed: what stands lower does the same work in less time.
"""

import json
import time
from pathlib import Path
from statistics import median

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import NullLocator
from rich.progress import track

import polarlight as pl
from polarlight.execution.heap import raise_mmap_threshold
from polarlight.lab.report.style import figure, legend, styles, tidy
from polarlight.lab.train.environment import hardware, versions

OUT = Path(__file__).parent / "results" / "cost_by_size"
WIDTHS = (128, 256, 512, 1024, 2048, 4096)
OPTIMIZERS = {
    "torch.optim.Muon": lambda ps: torch.optim.Muon(ps, weight_decay=0.0),
    "polarlight.Muon": pl.Muon,
    "polarlight.Aurora": pl.Aurora,
}


def flops(m: int, n: int) -> float:
    k = min(m, n)
    return 5.0 * (4 * m * n * k + 2 * k**3)


def step_times(m: int, n: int) -> dict[str, float]:
    """Median seconds per step, interleaved; several matrices where one is soon done."""
    count = max(1, min(16, int(2e10 / flops(m, n))))
    repeats = 5 if flops(m, n) < 5e11 else 2
    optimizers = {}
    for label, make in OPTIMIZERS.items():
        params = [torch.nn.Parameter(torch.zeros(m, n)) for _ in range(count)]
        for i, p in enumerate(params):
            p.grad = torch.randn(m, n, generator=torch.Generator().manual_seed(i))
        optimizers[label] = make(params)
    times: dict[str, list[float]] = {label: [] for label in optimizers}
    raise_mmap_threshold()  # as the activations of a larger model do
    for _ in range(repeats + 1):
        for label, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            times[label].append(time.perf_counter() - start)
    return {label: median(some[1:]) / count for label, some in times.items()}


def draw(sizes: list[tuple[int, int]], found: dict[str, dict[str, float]], path: Path) -> None:
    """Seconds per useful flop against width, a line per optimizer and aspect."""
    fig, (ax,) = figure(3.4)
    lines = {f"{label}, {a}:1": (label, a) for a in (1, 4) for label in OPTIMIZERS}
    looks = styles(lines)
    for name, (label, aspect) in lines.items():
        points = [(n, found[f"{m}x{n}"][label] / flops(m, n)) for m, n in sizes if m == aspect * n]
        ax.plot(*zip(*points, strict=True), color=looks[name].colour, ls=looks[name].dashes)
    ax.set(xscale="log", yscale="log", xlabel="width", ylabel="seconds per useful flop")
    ax.set_xticks(WIDTHS, [str(n) for n in WIDTHS])
    ax.xaxis.set_minor_locator(NullLocator())
    tidy(ax)
    legend(fig, looks)
    FigureCanvasAgg(fig).print_png(path)


def main() -> None:
    sizes = [(aspect * k, k) for aspect in (1, 4) for k in WIDTHS if aspect * k <= 8192]
    found = {f"{m}x{n}": step_times(m, n) for m, n in track(sizes)}
    OUT.mkdir(parents=True, exist_ok=True)
    about = {"command": "python -m benchmarks.cost_by_size", **versions()}
    about |= hardware(torch.device("cpu"))
    record = json.dumps({"about": about, "seconds": found}, indent=2)
    (OUT / "cpu.json").write_text(record + "\n")
    draw(sizes, found, OUT / "cpu.png")


if __name__ == "__main__":
    main()
