"""Average of past polar factors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.matrices import at_least_float32
from polarlight.linalg.nuclear import nuclear_norm
from polarlight.linalg.properties import NO_INVARIANTS, ROTATIONS, Invariants, Symmetries
from polarlight.linalg.qdwh import QDWH
from polarlight.linalg.slot import Buffers, MatrixMap, Stage
from polarlight.lookup import check_fraction
from polarlight.registry import registered


@registered("AveragedPolar", stateful=True, may_differ=("polar", "beta"))
@dataclass(frozen=True, slots=True)
class AveragedPolar(Stage):
    """The average of past polar factors, times the nuclear norm of the present gradient.

    Shapes: [..., m, n] -> [..., m, n]. State: `polar_momentum` [..., m, n].
    """

    polar: MatrixMap = QDWH()
    beta: float = 0.95

    def __post_init__(self) -> None:
        check_fraction("beta", self.beta)

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """The average."""
        return {"polar_momentum": shape}

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Update the average; returns it at its length."""
        U, P = self.polar(at_least_float32(X)), buffers["polar_momentum"]
        P.lerp_(U, 1 - self.beta)
        return (nuclear_norm(X, U) * P).to(X.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the declared symmetries."""
        return self.polar.symmetries(m, n) & ROTATIONS

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the declared invariants."""
        return NO_INVARIANTS

    def degree(self, m: int, n: int) -> float:
        """Return 1: the nuclear norm of the gradient."""
        return 1.0

    def __str__(self) -> str:
        return f"{self.polar}, averaged, nuclear norm"
