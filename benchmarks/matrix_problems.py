"""PolarGrad, Muon and Adam on three matrix problems: who converges at a constant learning rate.

    python -m benchmarks.matrix_problems                     # all three, published sizes
    python -m benchmarks.matrix_problems --problem quadratic --scale 0.2

Prints the gap at a quarter, half and the whole of the run for every method, and writes a picture
and a JSON file per problem. Learning rates follow the published ones (`METHODS`).
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR

import polarlight as pl
from benchmarks.problems import PROBLEMS, Labels
from polarlight.lab.report.style import figure, legend, styles, tidy

EVERY = 10
"""Steps between two measurements of the gap."""


@dataclass(frozen=True)
class Method:
    """An optimizer and how its learning rate falls: by `decay` every 25 steps."""

    make: Callable[[list, float], Optimizer]
    decay: float = 1.0


def polargrad(factor: float, momentum: float = 0.0) -> Callable[[list, float], Optimizer]:
    return lambda params, lr: pl.PolarGrad(params, lr=factor * lr, momentum=momentum)


def polar_first(factor: float) -> Callable[[list, float], Optimizer]:
    rule = pl.rules.polargrad_polar_first(beta=0.95)
    return lambda params, lr: pl.SpectralOptimizer(params, lr=factor * lr, rule=rule)


def muon(lr: float) -> Callable[[list, float], Optimizer]:
    rule = pl.rules.muon(polar=pl.linalg.QDWH(), scale=pl.stages.Unscaled())
    return lambda params, _: pl.SpectralOptimizer(params, lr=lr, rule=rule)


def adam(lr: float) -> Callable[[list, float], Optimizer]:
    return lambda params, _: torch.optim.Adam(params, lr=lr)


METHODS = {
    "quadratic": {
        "PolarGrad": Method(polargrad(3.0)),
        "PolarGrad, momentum first": Method(polargrad(20.0, momentum=0.9)),
        "PolarGrad, polar first": Method(polar_first(40.0)),
        "Muon": Method(muon(0.1)),
        "Muon, decay": Method(muon(0.05), decay=0.99),
        "Adam": Method(adam(0.05)),
        "Adam, decay": Method(adam(0.05), decay=0.99),
    },
    "logistic": {
        "PolarGrad": Method(polargrad(1.0)),
        "PolarGrad, momentum first": Method(polargrad(1.7, momentum=0.9)),
        "PolarGrad, polar first": Method(polar_first(1.7)),
        "Muon": Method(muon(0.1)),
        "Muon, decay": Method(muon(0.2), decay=0.95),
        "Adam": Method(adam(0.005)),
        "Adam, decay": Method(adam(0.01), decay=0.95),
    },
    "completion": {
        "PolarGrad": Method(polargrad(0.5)),  # at the published 50 it diverges
        "PolarGrad, momentum first": Method(polargrad(1.0, momentum=0.5)),
        "Muon": Method(muon(0.25)),
        "Muon, decay": Method(muon(0.25), decay=0.95),
        "Adam": Method(adam(0.05)),
        "Adam, decay": Method(adam(0.05), decay=0.95),
    },
}


def gaps(name: str, method: Method, seed: int, scale: float, steps: int) -> list[float]:
    """The gap every `EVERY` steps, from the start on."""
    problem = PROBLEMS[name](seed, scale)
    optimizer = method.make(problem.parameters, problem.polar_lr)
    scheduler = StepLR(optimizer, step_size=25, gamma=method.decay)
    found = [problem.gap()]
    for step in range(steps):
        optimizer.zero_grad()
        problem.loss(step).backward()
        optimizer.step()
        scheduler.step()
        if (step + 1) % EVERY == 0:
            found.append(problem.gap())
    return found


def draw(name: str, curves: dict[str, list[float]], path: Path) -> None:
    """All methods of a problem, log axis."""
    drawn, (ax,) = figure(3.2)
    looks = styles(curves)
    for label, values in curves.items():
        steps = [EVERY * i for i in range(len(values))]
        ax.plot(steps, values, color=looks[label].colour, ls=looks[label].dashes, lw=1.3)
    ax.set_yscale("log")
    tidy(ax, "", "step", getattr(Labels(), name))
    legend(drawn, looks)
    FigureCanvasAgg(drawn).print_png(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problem", choices=[*PROBLEMS, "all"], default="all")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all sizes")
    parser.add_argument("--steps", type=int, help="default: the published number")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, default=Path("runs/matrix-problems"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    for name in PROBLEMS if options.problem == "all" else [options.problem]:
        steps = options.steps or PROBLEMS[name].steps
        curves = {
            label: gaps(name, method, options.seed, options.scale, steps)
            for label, method in track(METHODS[name].items(), description=name, console=console)
        }
        table = Table(name, "1/4", "1/2", "end", title=getattr(Labels(), name))
        for label, values in curves.items():
            places = (len(values) // 4, len(values) // 2, -1)
            table.add_row(label, *(f"{values[i]:.3g}" for i in places))
        console.print(table)
        draw(name, curves, options.out / f"{name}.png")
        settings = {"scale": options.scale, "steps": steps, "seed": options.seed, "every": EVERY}
        (options.out / f"{name}.json").write_text(json.dumps({**settings, "gaps": curves}))


if __name__ == "__main__":
    main()
