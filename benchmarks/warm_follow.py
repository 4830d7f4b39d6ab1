"""Search for the part of a row norm's change that the kept row scale follows per step.

    python -m benchmarks.warm_follow

Row-norm spread (deviation over mean) of `WarmPolar(ExactPolar())` on consecutive momenta of gate
and up projections of real runs, means over the last steps, by `follow` and exponent.
"""

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import polarlight as pl
from benchmarks.recorded import momentum_sequences

FOLLOW = (0.0, 0.1, 0.2, 0.3, 1.0)
EXPONENTS = (0.5,)
LAST = 20
WARM_UP = 12


def spread(solver: pl.rules.WarmPolar, sequence: Tensor) -> float:
    """Mean over the steps after the warm-up of one sequence [steps, m, n]."""
    shapes = solver.buffer_shapes(sequence[0].shape)
    kept = {name: torch.zeros(shape) for name, shape in shapes.items()}
    norms = [solver(M, kept).norm(dim=1) for M in sequence][WARM_UP:]
    return sum((n.std() / n.mean()).item() for n in norms) / len(norms)


def main() -> None:
    table = Table("momentum of", "exponent", *(f"follow {f}" for f in FOLLOW))
    for optimizer in ("muon", "aurora"):
        sequences = momentum_sequences(optimizer, steps=200, last=LAST).values()
        for exponent in EXPONENTS:
            row = []
            for follow in FOLLOW:
                solver = pl.rules.WarmPolar(pl.linalg.ExactPolar(), exponent, follow)
                found = [spread(solver, sequence) for sequence in sequences]
                row.append(f"{sum(found) / len(found):.4f}")
            table.add_row(optimizer, str(exponent or "by shape"), *row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
