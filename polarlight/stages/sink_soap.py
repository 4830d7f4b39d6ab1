"""SinkSOAP's map: the momentum in Shampoo's eigenbases, rows and columns of equal energy."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.cost import uniform_range
from polarlight.linalg.decomposition import symmetric_eigen
from polarlight.linalg.isolation import isolated
from polarlight.linalg.matrices import nonzero
from polarlight.linalg.properties import ROTATIONS, Symmetries
from polarlight.linalg.slot import GRADIENT, Buffers, gradient_of
from polarlight.lookup import check_fraction
from polarlight.registry import registered
from polarlight.stages.factors import SIDES, GramFactors
from polarlight.stages.statistics import StatisticsStage, batch_shapes, in_units, keep_zero_lines


@registered("SinkSoap", stateful=True, may_differ=("beta", "rounds", "floor"))
@dataclass(frozen=True, slots=True)
class SinkSoap(StatisticsStage):
    """Q_L (r^(1/2) X c^(1/2)) Q_R' with X = Q_L' N Q_R, r and c by Sinkhorn's iteration on X o X.

        L <- b L + (1 - b) G G',  R <- b R + (1 - b) G' G;  Q_L, Q_R their eigenvectors
        r = (1/m) / (E c),  c = (1/n) / (E' r),             E = X o X + floor mean(X o X)

    Shapes: [..., m, n] -> [..., m, n]. Reads the gradient. State: `unit` [..., 1, 1], `left_factor`
    [..., m, m], `right_factor` [..., n, n]. Two eigendecompositions per call, which wait for the
    device.

    Args:
        beta: Decay rate of the factors, in [0, 1).
        rounds: Rounds of Sinkhorn's iteration, at least 1.
        floor: Added to the energies, as a fraction of their mean; positive.
    """

    beta: float = 0.95
    rounds: int = 10
    floor: float = 1e-8

    def __post_init__(self) -> None:
        check_fraction("beta", self.beta)
        if self.rounds < 1:
            raise ValueError(f"rounds must be >= 1, got {self.rounds}")
        if not self.floor > 0:
            raise ValueError(f"floor must be > 0, got {self.floor}")

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return both factors, the unit, and the gradient."""
        *batch, m, n = shape
        sizes = {"unit": (1, 1), "left_factor": (m, m), "right_factor": (n, n), GRADIENT: (m, n)}
        return batch_shapes(batch, sizes)

    @isolated
    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Update the factors; return the momentum with even energies."""
        G = in_units(gradient_of(X, buffers), buffers["unit"])
        GramFactors(self.beta).update(G, buffers)
        N = X.to(G.dtype) / nonzero(buffers["unit"])
        left, right = (_eigenvectors(buffers[f"{side}_factor"]) for side in SIDES)
        Y = left.mT @ N @ right  # [..., m, n]
        energies = Y.square()
        mean = nonzero(energies.mean(dim=(-2, -1), keepdim=True))
        E, (m, n) = energies / mean + self.floor, Y.shape[-2:]
        c = torch.ones_like(E[..., :1, :].mT)  # [..., n, 1]
        for _ in uniform_range(self.rounds):
            r = 1 / (m * (E @ c))  # [..., m, 1]
            c = 1 / (n * (E.mT @ r))
        D = left @ (r.sqrt() * Y * c.sqrt().mT) @ right.mT
        return keep_zero_lines(D, N).to(X.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the declared symmetries."""
        return ROTATIONS

    def __str__(self) -> str:
        return f"even energies in eigenbases, {self.rounds} rounds"


def _eigenvectors(S: Tensor) -> Tensor:
    """Return eigenvectors of a symmetric matrix; unit vectors' of zero for a non-finite one."""
    finite = S.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    return symmetric_eigen(torch.where(finite, S, 0.0))[1]
