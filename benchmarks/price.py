"""Price of Aurora over Muon: the optimizer step and a whole training step, by model and batch.

    python -m benchmarks.price --plan             # cells, parameters, operations
    python -m benchmarks.price                    # leave the machine alone; resumes
    python -m benchmarks.price --models 64x2,128x2 --tokens 1024 --repeats 20

Two pairs: Muon and Aurora as polarlight has them by default, and both as Aurora's release computes
them, matrix by matrix with twelve-step polar factors, two of them per step in Aurora. In each round
every optimizer takes a training step in turn, forward and backward pass and optimizer step timed
apart; medians over the rounds but the first. The price is the median of the ratios per round, with
the quartiles. Every optimizer has a copy of the model, so that passes are the same work for all:
end to end both of a pair get the median pass of all four.

Results are written after every cell; a cell that is there for this machine and version is not
measured again (`--again` measures all).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import torch
from rich.console import Console
from rich.table import Table

import polarlight as pl
from benchmarks.command_line import recorded_command
from benchmarks.optimizer_step import TWELVE, commit
from polarlight.execution.heap import raise_mmap_threshold
from polarlight.lab.train.environment import hardware, versions
from polarlight.lab.train.model import GPT
from polarlight.lab.train.settings import Plan

OUT = Path(__file__).parent / "results" / "price"
MODELS = "64x2,128x2,256x4,512x4"
TOKENS = "1024,4096,16384"
CONTEXT = 256
MOST = 6e11
"""Operations of the passes of a training step, at most; larger cells are left out."""


def default_muon(model: GPT) -> pl.SpectralOptimizer:
    return pl.Muon(model, lr=0.01)


def default_aurora(model: GPT) -> pl.SpectralOptimizer:
    return pl.Aurora(model, lr=0.01)


def release_muon(model: GPT) -> pl.SpectralOptimizer:
    rule = pl.rules.muon(polar=TWELVE)
    return pl.rules.WithAdamW(model, lr=0.01, rule=rule, executor=pl.OneByOne())


def release_aurora(model: GPT) -> pl.SpectralOptimizer:
    rule = pl.rules.aurora(pl.rules.BalancedPolar(TWELVE, 2, 0.5), side=pl.stages.Side.LONG_AXIS)
    return pl.rules.WithAdamW(model, lr=0.01, rule=rule, executor=pl.OneByOne())


OPTIMIZERS: dict[str, Callable[[GPT], pl.SpectralOptimizer]] = {
    "Muon": default_muon,
    "Aurora": default_aurora,
    "release's Muon": release_muon,
    "release's Aurora": release_aurora,
}
PAIRS = {"default": ("Aurora", "Muon"), "release": ("release's Aurora", "release's Muon")}


@dataclass(frozen=True)
class Cell:
    """A model and a batch.

    Attributes:
        width: Of the model.
        layers: Of the model.
        tokens: Per step.
    """

    width: int
    layers: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.width}x{self.layers}, {self.tokens} tokens"

    def plan(self) -> Plan:
        return Plan(
            width=self.width,
            layers=self.layers,
            heads=max(1, self.width // 64),
            context=CONTEXT,
            batch=max(1, self.tokens // CONTEXT),
        )

    def parameters(self) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in GPT(self.plan().model(256)).parameters())

    def operations(self) -> float:
        """Operations of a forward and backward pass, 6 per parameter and token."""
        return 6.0 * self.parameters() * self.tokens


def cells_of(models: str, tokens: str) -> list[Cell]:
    """Return the cells of comma-separated models and batches, small ones first.

    Raises:
        ValueError: If a model is not WIDTHxLAYERS, or a batch is no multiple of the context.
    """
    found = []
    for model in models.split(","):
        width, cross, layers = model.partition("x")
        if not (cross and width.isdigit() and layers.isdigit()):
            raise ValueError(f"a model is WIDTHxLAYERS, such as 128x2, got {model!r}")
        found += [Cell(int(width), int(layers), int(count)) for count in tokens.split(",")]
    odd = [cell.tokens for cell in found if cell.tokens % CONTEXT or not cell.tokens]
    if odd:
        raise ValueError(f"tokens per step are a multiple of {CONTEXT}, got {odd[0]}")
    return sorted(found, key=Cell.operations)


class Lane:
    """An optimizer with its own copy of the model."""

    def __init__(self, label: str, cell: Cell, device: str) -> None:
        self.device, plan = device, cell.plan()
        self.model = GPT(plan.model(256), seed=0).to(device)
        self.optimizer = OPTIMIZERS[label](self.model)
        generator = torch.Generator().manual_seed(0)
        shape = (plan.batch, plan.context + 1)
        self.batch = torch.randint(256, shape, generator=generator).to(device)
        self.passes: list[float] = []
        self.steps: list[float] = []

    def round(self) -> None:
        """Take one training step and keep the seconds of passes and step."""
        start = self._now()
        self.model(self.batch[:, :-1], self.batch[:, 1:]).backward()
        middle = self._now()
        self.optimizer.step()
        self.steps.append(self._now() - middle)
        self.passes.append(middle - start)
        self.optimizer.zero_grad()

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()


def measured(cell: Cell, device: str, repeats: int) -> dict[str, dict]:
    """Return medians of passes and steps by optimizer, and the price of both pairs."""
    raise_mmap_threshold()  # as the trainer does
    lanes = {label: Lane(label, cell, device) for label in OPTIMIZERS}
    for _ in range(repeats + 1):
        for lane in lanes.values():
            lane.round()
    passes = median(x for lane in lanes.values() for x in lane.passes[1:])
    seconds = {
        label: {"passes": median(lane.passes[1:]), "step": median(lane.steps[1:])}
        for label, lane in lanes.items()
    }
    prices = {}
    for name, (aurora, muon) in PAIRS.items():
        ours, base = lanes[aurora].steps[1:], lanes[muon].steps[1:]
        rounds = list(zip(ours, base, strict=True))
        prices[name] = {
            "step": spread([a / b for a, b in rounds]),
            "end to end": spread([(passes + a) / (passes + b) for a, b in rounds]),
        }
    return {"parameters": cell.parameters(), "seconds": seconds, "price": prices}


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Return the median of ratios and their quartiles."""
    if len(ratios) < 2:
        return dict.fromkeys(("median", "low", "high"), ratios[0])
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def known_cells(path: Path, about: Mapping[str, str]) -> dict[str, dict]:
    """Return the cells of an earlier run on this machine with these versions; else none."""
    if not path.exists():
        return {}
    earlier = json.loads(path.read_text())
    same = ("polarlight", "torch", "device", "threads")
    if any(earlier["about"].get(key) != about.get(key) for key in same):
        return {}
    return earlier["cells"]


def table(found: Mapping[str, dict]) -> Table:
    """Return steps in milliseconds and prices in percent, a row per cell."""
    shown = Table("cell", "parameters", "passes, ms", *(f"{x}, ms" for x in OPTIMIZERS))
    for name in PAIRS:
        shown.add_column(f"{name}: step, %")
        shown.add_column(f"{name}: end to end, %")
    for name, result in found.items():
        seconds = result["seconds"]
        passes = median(seconds[label]["passes"] for label in OPTIMIZERS)
        row = [name, f"{result['parameters']:,}", f"{passes * 1e3:.1f}"]
        row += [f"{seconds[label]['step'] * 1e3:.2f}" for label in OPTIMIZERS]
        for pair in PAIRS:
            row += [percent(result["price"][pair][part]) for part in ("step", "end to end")]
        shown.add_row(*row)
    return shown


def percent(found: Mapping[str, float]) -> str:
    median_, low, high = (100 * (found[key] - 1) for key in ("median", "low", "high"))
    return f"{median_:+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=MODELS, help="WIDTHxLAYERS, by commas")
    parser.add_argument("--tokens", default=TOKENS, help="per step, by commas")
    parser.add_argument("--repeats", type=int, default=9, help="rounds that count")
    parser.add_argument("--most", type=float, default=MOST, help="operations per step at most")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--again", action="store_true", help="measure known cells again")
    parser.add_argument("--plan", action="store_true", help="print the cells and stop")
    options = parser.parse_args()
    try:
        asked = cells_of(options.models, options.tokens)
    except ValueError as error:
        parser.error(str(error))
    cells = [cell for cell in asked if cell.operations() <= options.most]
    for cell in asked[len(cells) :]:
        print(f"left out: {cell}, {cell.operations():.1e} operations", file=sys.stderr)
    if options.plan:
        for cell in cells:
            print(f"{cell}: {cell.parameters():,} parameters, {cell.operations():.1e} operations")
        return
    about = {
        "command": recorded_command("benchmarks.price", sys.argv[1:]),
        "commit": commit(),
        **versions(),
        **hardware(torch.device(options.device)),
    }
    path = options.out / f"{options.device.split(':')[0]}.json"
    found = {} if options.again else known_cells(path, about)
    options.out.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        if str(cell) not in found:
            print(f"{cell} ...", file=sys.stderr, flush=True)
            found[str(cell)] = measured(cell, options.device, options.repeats)
            path.write_text(json.dumps({"about": about, "cells": found}, indent=2) + "\n")
    Console(width=200).print(table({str(cell): found[str(cell)] for cell in cells}))


if __name__ == "__main__":
    main()
