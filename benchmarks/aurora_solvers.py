"""Every way to balance rows, on momentum matrices of real runs: how even, how exact, how aligned.

    python -m benchmarks.aurora_solvers

Records the last momenta of the gate and up projections under Muon and under Aurora (preset `quick`,
200 steps, 768 x 192), applies every solver, and prints means over matrices and steps:

    spread      standard deviation over mean of the row norms of U
    orth        |U'U - I|_F / sqrt(n)
    align       <M, U> / nuclear norm of M; 1 for the polar factor
    polars      polar factors per step
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import polarlight as pl
from benchmarks.recorded import momentum_sequences

POLARS = {
    "exact": pl.ExactPolar(),
    "simple x12": pl.NewtonSchulz(pl.SIMPLE_QUINTIC),
    "polar express x5": pl.NewtonSchulz(pl.polar_express(5)),
    "polar express x6": pl.NewtonSchulz(pl.polar_express(6)),
    "jordan x5": pl.NewtonSchulz(pl.JORDAN),
}
WARM_UP = 15
"""Steps that a solver with memory sees before it is measured."""


def solvers(polar: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, int, object]]:
    """(name, polar factors per step, solver) for one polar method."""
    yield "muon", 1, polar
    for rounds in (1, 2, 3):
        yield f"release, {rounds} rounds, exponent .5", rounds, pl.BalancedPolar(polar, rounds, 0.5)
        if rounds > 1:
            yield f"release, {rounds} rounds, by shape", rounds, pl.BalancedPolar(polar, rounds)
    for rounds in (2, 3):
        yield f"paper, {rounds} rounds", rounds, pl.FeedbackPolar(polar, rounds)
    for exponent in (0.25, 0.5, None):
        yield f"warm, exponent {exponent or 'by shape'}", 1, pl.WarmPolar(polar, exponent)
    yield "riemannian, 3 steps of .1", 7, pl.RiemannianPolar(polar)


def measured(solver: object, sequence: Tensor) -> Iterator[tuple[float, float, float]]:
    """(spread, orth, align) for the last steps of one sequence [steps, m, n]."""
    kept = {}
    if hasattr(solver, "buffer_shapes"):
        kept = {k: torch.zeros(s) for k, s in solver.buffer_shapes(sequence[0].shape).items()}
    for step, M in enumerate(sequence):
        U = (solver(M, kept) if kept else solver(M)).float()
        if step >= WARM_UP:
            norms, n = U.norm(dim=1), M.shape[1]
            error = (U.mT @ U - torch.eye(n)).norm() / n**0.5
            nuclear = torch.linalg.svdvals(M).sum()
            yield (
                (norms.std() / norms.mean()).item(),
                error.item(),
                ((M * U).sum() / nuclear).item(),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--polars", default="exact,polar express x6", help="by commas")
    options = parser.parse_args()
    console = Console()
    for optimizer in ("muon", "aurora"):
        sequences = momentum_sequences(optimizer, steps=200, last=20)
        table = Table(
            "solver", "polar", "polars", "spread", "orth", "align", title=f"under {optimizer}"
        )
        for name in options.polars.split(","):
            for solver, count, function in solvers(POLARS[name]):
                rows = [r for sequence in sequences.values() for r in measured(function, sequence)]
                means = torch.tensor(rows).mean(dim=0).tolist()
                table.add_row(solver, name, str(count), *(f"{x:.4f}" for x in means))
        console.print(table)


if __name__ == "__main__":
    main()
