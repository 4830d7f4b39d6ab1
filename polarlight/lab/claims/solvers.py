"""Ways to balance rows that are tried against Aurora's and are not offered as optimizers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.properties import ROWS, Invariants, Symmetries, balanced_invariants
from polarlight.linalg.rows import inverse_row_norms
from polarlight.linalg.slot import Buffers, MatrixMap, PolarMap, Stage
from polarlight.rules.aurora_exact import ExactBalanced
from polarlight.stages.equilibrate import RELATIVE_FLOOR


@dataclass(frozen=True, slots=True)
class PolarFirst(PolarMap):
    """Polar factor, rows made equal, polar factor again, and so on: alternating projections.

    Args:
        polar: The polar method.
        rounds: Polar factors, at least 1; one alone is the polar factor.
    """

    polar: MatrixMap
    rounds: int = 2

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be >= 1, got {self.rounds}")

    def __call__(self, M: Tensor) -> Tensor:
        """The last polar factor of M [..., m, n]."""
        U = self.polar(M)
        for _ in range(self.rounds - 1):
            U = self.polar(inverse_row_norms(U, RELATIVE_FLOOR) * U)
        return U

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the polar method's on rows as units."""
        return self.polar.symmetries(m, n) & ROWS

    def invariants(self, m: int, n: int) -> Invariants:
        """Return those of an approximately balanced polar factor."""
        return balanced_invariants(self.polar.invariants(m, n))

    def __str__(self) -> str:
        return f"{self.rounds} times {self.polar}, rows made equal in between"


FEW = ExactBalanced(steps=3, cg_steps=10, dtype=torch.float32)
"""Newton steps for momentum that moves little from one step to the next."""


@dataclass(frozen=True, slots=True)
class ExactFollowed(Stage):
    """The exact solver from step to step, each from the solution of the step before.

    Args:
        solver: How each step is solved.
    """

    solver: ExactBalanced = FEW

    @property
    def polar(self) -> MatrixMap:
        """The polar method of the start, and where nothing is balanced."""
        return self.solver.polar

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """The last solution."""
        return {"solution": shape}

    def __call__(self, M: Tensor, buffers: Buffers) -> Tensor:
        """The best balanced polar factor of M, tall [..., m, n]."""
        kept = buffers["solution"]
        U = self.solver.continued(M, kept) if bool(kept.any()) else self.solver(M)
        kept.copy_(U)
        return U

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the solver's."""
        return self.solver.symmetries(m, n)

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the solver's."""
        return self.solver.invariants(m, n)

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return the solver's."""
        return self.solver.output_rms(m, n, incoming)

    def __str__(self) -> str:
        return f"{self.solver}, and then from the step before"
