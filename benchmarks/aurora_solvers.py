"""Every way to balance rows, on momentum matrices of real runs: how even, how exact, how dear.

    python -m benchmarks.aurora_solvers                           # records two short runs first
    python -m benchmarks.aurora_solvers --momenta runs/momenta    # keeps what it recorded there

Records the last momenta of the gate and up projections under Muon and under Aurora (preset `quick`,
200 steps, 768 x 192), applies every solver with an exact polar factor and with the default engine,
prints means over matrices and the last two steps, and writes them as JSON and as one picture. The
default engine and Jordan's steps run in bfloat16, whatever the machine multiplies fastest:

    spread      standard deviation over mean of the row norms of U
    orth        |U'U - I|_F / sqrt(n)
    align       <M, U> / nuclear norm of M; 1 for the polar factor
    GF          matrix-product and decomposition flops per step, in units of 1e9
    polars      polar factors per step

The exact solver is measured on the last step alone, with its tangent gradient over |M| and the gap
between its value and an upper bound on every other: the worst matrix of each.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import polarlight as pl
from benchmarks.command_line import recorded_command
from benchmarks.recorded import momentum_sequences
from polarlight.lab.claims.solvers import PolarFirst
from polarlight.lab.report.style import COLOURS, FAINT, tidy
from polarlight.lab.train.environment import hardware, versions
from polarlight.linalg.balance import TangentSpace
from polarlight.linalg.cost import counted
from polarlight.linalg.slot import Function, Slot
from polarlight.rules.aurora_exact import upper_bound

EXACT, AUTO = "exact", "auto"
POLARS = {EXACT: pl.linalg.ExactPolar(), AUTO: pl.linalg.AutoPolar(dtype=torch.bfloat16)}
JORDAN = pl.linalg.NewtonSchulz(pl.linalg.schedules.JORDAN, torch.bfloat16)
ORACLE = pl.rules.ExactBalanced(steps=14)
OPTIMIZERS = ("muon", "aurora")
STEPS, LAST, MEASURED = 200, 20, 2
"""Of the run, of its end that solvers with memory see, and of those that are measured."""


@dataclass(frozen=True)
class Method:
    """A solver, its engine and polar factors per step."""

    name: str
    engine: str
    solver: Slot
    polars: int

    def flops(self, m: int, n: int) -> float:
        shapes = self.solver.buffer_shapes(torch.Size((m, n)))
        kept = {k: torch.zeros(s, device="meta") for k, s in shapes.items()}
        M = torch.empty(m, n, device="meta")
        return counted(lambda: self.solver.apply(M, kept), m, n).flops


@dataclass(frozen=True)
class Result:
    """Means over the matrices of one run."""

    momentum: str
    method: str
    engine: str
    polars: int
    gigaflops: float
    spread: float
    orth: float
    align: float


def methods() -> Iterator[Method]:
    yield Method("muon", "jordan x 5", JORDAN, 1)
    for name, polar in POLARS.items():
        yield Method("muon", name, polar, 1)
        for rounds in (1, 2, 3):
            yield Method(f"release x {rounds}", name, pl.rules.BalancedPolar(polar, rounds), rounds)
        by_shape = pl.rules.BalancedPolar(polar, 2, exponent=None)
        yield Method("release x 2, exponent", name, by_shape, 2)
        for rounds in (2, 3):
            yield Method(f"paper x {rounds}", name, pl.rules.FeedbackPolar(polar, rounds), rounds)
            yield Method(
                f"polar first x {rounds}", name, Function(PolarFirst(polar, rounds)), rounds
            )
        yield Method("warm", name, pl.rules.WarmPolar(polar), 1)
        yield Method("warm, exponent", name, pl.rules.WarmPolar(polar, exponent=None), 1)
        ascent = pl.rules.RiemannianPolar(polar)
        yield Method("riemannian", name, ascent, 1 + 2 * ascent.steps)


def factors(method: Method, sequence: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(M, U) for the measured steps of one sequence [steps, m, n]."""
    solver = method.solver
    kept = {k: torch.zeros(s) for k, s in solver.buffer_shapes(sequence[0].shape).items()}
    if not kept:
        sequence = sequence[-MEASURED:]
    yield from [(M, solver.apply(M, kept)) for M in sequence][-MEASURED:]


def measured(M: Tensor, U: Tensor) -> tuple[float, float, float]:
    """(spread, orth, align), in float64."""
    M, U = M.double(), U.double()
    norms, n = U.norm(dim=1), M.shape[1]
    error = (U.mT @ U - torch.eye(n)).norm() / n**0.5
    align = (M * U).sum() / torch.linalg.svdvals(M).sum()
    return (norms.std() / norms.mean()).item(), error.item(), align.item()


def certificate(M: Tensor, U: Tensor) -> tuple[float, float, float]:
    """(tangent gradient over |M|, gap to the bound, largest relative error of a row)."""
    gradient = TangentSpace.at(U).project(M).norm() / M.norm()
    gap = upper_bound(M, U).squeeze() / (M * U).sum() - 1
    rows = (U.norm(dim=1) * (M.shape[0] / M.shape[1]) ** 0.5 - 1).abs().max()
    return gradient.item(), gap.item(), rows.item()


def recorded(optimizer: str, folder: Path | None) -> dict[str, Tensor]:
    """The momenta, from the folder if they are there."""
    path = folder / f"{optimizer}.pt" if folder else None
    if path and path.exists():
        return torch.load(path, weights_only=True)
    sequences = momentum_sequences(optimizer, steps=STEPS, last=LAST)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(sequences, path)
    return sequences


def results(optimizer: str, sequences: dict[str, Tensor]) -> Iterator[Result]:
    for method in track(list(methods()), description=f"momentum of {optimizer}"):
        pairs = [pair for s in sequences.values() for pair in factors(method, s)]
        yield result(optimizer, method, pairs)


def result(optimizer: str, method: Method, pairs: list[tuple[Tensor, Tensor]]) -> Result:
    means = torch.tensor([measured(*p) for p in pairs], dtype=torch.float64).mean(dim=0).tolist()
    cost = method.flops(*pairs[0][0].shape) / 1e9
    return Result(optimizer, method.name, method.engine, method.polars, cost, *means)


def solved(sequences: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(M, its exact factor) for the last step of each, in float64."""
    last = [s[-1].double() for s in sequences.values()]
    return [(M, ORACLE(M)) for M in track(last, description="exact solutions")]


LOWEST = 1e-8
"""Where the axes end; what is below it is drawn there."""
MARKERS = {EXACT: "o", AUTO: "^", "jordan x 5": "s"}


def draw(found: list[Result], path: Path) -> None:
    """Cost against each measure, a column per momentum, a colour per method."""
    names = list(dict.fromkeys(r.method for r in found))
    shades = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    fills = {name: "full" if i < len(COLOURS) else "none" for i, name in enumerate(names)}
    drawn = Figure(figsize=(9.4, 8.2), layout="constrained", facecolor="white")
    axes = drawn.subplots(3, 2, sharex=True, sharey="row")
    labels = {"align": "alignment", "spread": "spread of row norms", "orth": "orthogonality error"}
    for column, optimizer in enumerate(OPTIMIZERS):
        for ax, (measure, label) in zip(axes[:, column], labels.items(), strict=True):
            for r in (r for r in found if r.momentum == optimizer):
                ax.plot(
                    r.gigaflops,
                    max(getattr(r, measure), LOWEST),
                    marker=MARKERS[r.engine],
                    color=shades[r.method],
                    fillstyle=fills[r.method],
                    ls="none",
                    ms=6.5,
                )
            ax.set_xscale("log")
            ax.set_yscale("linear" if measure == "align" else "log")
            title = f"momentum of {optimizer}" if measure == "align" else ""
            tidy(ax, title, "", label if column == 0 else "")
        best = [r.align for r in found if r.momentum == optimizer and r.method == "exact"]
        axes[0, column].axhline(best[0], color=FAINT, lw=0.9, ls="dashed")
        axes[2, column].set_xlabel("GF per step and matrix (768 x 192)", fontsize=8.5)
    entries = [
        Line2D([], [], color=shades[k], marker="o", fillstyle=fills[k], ls="none", label=k)
        for k in names
    ]
    entries += [
        Line2D([], [], color=FAINT, marker=marker, ls="none", label=f"engine: {k}")
        for k, marker in MARKERS.items()
    ]
    drawn.legend(handles=entries, loc="outside right upper", fontsize=8, frameon=False)
    FigureCanvasAgg(drawn).print_png(path)


def tell(found: list[Result], console: Console) -> None:
    columns = ("method", "engine", "polars", "GF", "spread", "orth", "align")
    for optimizer in OPTIMIZERS:
        table = Table(*columns, title=f"momentum of {optimizer}")
        for r in (r for r in found if r.momentum == optimizer):
            numbers = (r.gigaflops, r.spread, r.orth, r.align)
            table.add_row(r.method, r.engine, str(r.polars), *(f"{x:.3g}" for x in numbers[:3]),
                          f"{r.align:.4f}")  # fmt: skip
        console.print(table)


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--momenta", type=Path, help="folder to keep the recorded momenta in")
    parser.add_argument("--out", type=Path, default=Path("runs/aurora-solvers"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    console, found, certificates, version = Console(), [], {}, commit()
    for optimizer in OPTIMIZERS:
        sequences = recorded(optimizer, options.momenta)
        found += results(optimizer, sequences)
        pairs = solved(sequences)
        exact = Method("exact", EXACT, ORACLE, 1)
        found.append(result(optimizer, exact, pairs))
        certified = [certificate(*pair) for pair in pairs]
        worst = torch.tensor(certified, dtype=torch.float64).amax(dim=0).tolist()
        certificates[optimizer] = dict(zip(("gradient", "gap", "rows"), worst, strict=True))
    tell(found, console)
    console.print(certificates)
    about = {
        "command": recorded_command("benchmarks.aurora_solvers", sys.argv[1:]),
        "commit": version,
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
    }
    content = {**about, "exact, worst": certificates, "results": [asdict(r) for r in found]}
    (options.out / "solvers.json").write_text(json.dumps(content, indent=1) + "\n")
    draw(found, options.out / "solvers.png")


if __name__ == "__main__":
    main()
