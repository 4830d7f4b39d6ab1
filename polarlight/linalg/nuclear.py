"""Nuclear norms, and polar factors as long as them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.matrices import at_least_float32, nonzero, unit_scale
from polarlight.linalg.properties import ROTATIONS, Invariant, Invariants, Symmetries
from polarlight.linalg.qdwh import QDWH
from polarlight.linalg.slot import MatrixMap, polar_rms
from polarlight.registry import registered


def nuclear_norm(M: Tensor, U: Tensor, power: float = 1.0) -> Tensor:
    """<M, U>^power of each matrix, [..., m, n] -> [..., 1, 1], U the polar factor; 0 for zero."""
    M, U = at_least_float32(M), at_least_float32(U)
    largest = M.abs().amax(dim=(-2, -1), keepdim=True)
    pairing = (unit_scale(M) * U).sum(dim=(-2, -1), keepdim=True)
    return torch.where(pairing == 0, 0.0, nonzero(pairing) ** power * largest**power)


@registered("NuclearPolar")
@dataclass(frozen=True, slots=True)
class NuclearPolar(MatrixMap):
    """<M, polar(M)>^power polar(M), [..., m, n] -> [..., m, n]; power 1 PolarGrad, 0 Muon."""

    polar: MatrixMap = QDWH()
    power: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.power <= 1:
            raise ValueError(f"power must lie in [0, 1], got {self.power}")

    def __call__(self, M: Tensor) -> Tensor:
        """The polar factor at its length."""
        U = self.polar(M)
        return (nuclear_norm(M, U, self.power) * U).to(M.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the declared symmetries."""
        return self.polar.symmetries(m, n) & ROTATIONS

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the polar method's, but for the size."""
        polar = self.polar.invariants(m, n)
        return {name: limit for name, limit in polar.items() if name != Invariant.SIZE}

    def degree(self, m: int, n: int) -> float:
        """Return the power of the nuclear norm."""
        return self.power

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return the root mean square entry; see `Slot`."""
        return None if self.power else polar_rms(m, n)

    def __str__(self) -> str:
        return f"{self.polar}, nuclear norm"
