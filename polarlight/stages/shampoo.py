"""Shampoo's preconditioner: powers of two Kronecker factors around the averaged gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.decomposition import symmetric_eigen
from polarlight.linalg.isolation import isolated
from polarlight.linalg.matrices import largest_entry
from polarlight.linalg.properties import NO_INVARIANTS, ROTATIONS, Invariants, Symmetries
from polarlight.linalg.rest import PER_MATRIX, SIZES, moving
from polarlight.linalg.slot import Buffers, Stage
from polarlight.lookup import check_betas
from polarlight.registry import registered
from polarlight.stages.factors import SIDES, GramFactors, live_entries
from polarlight.stages.statistics import batch_shapes, in_units


@registered("Shampoo", stateful=True, may_differ=("betas", "exponent", "floor"))
@dataclass(frozen=True, slots=True)
class Shampoo(Stage):
    """L^exponent M R^exponent with M, L, R averages of G, G G', G' G; G from `RawGradient`.

    Shapes: [..., m, n] -> [..., m, n]. State: `unit` [..., 1, 1], `first_moment` [..., m, n],
    `left_factor` [..., m, m], `right_factor` [..., n, n], `momentum_sizes` [..., 1, 2]. Two
    eigendecompositions per call, which wait for the device. Zero where M is at rest
    (`linalg/rest.py`).

    Args:
        betas: Decay rates of M and of the factors, in [0, 1).
        exponent: Power of the factors; -1/4 each makes the whole free of the gradient's scale.
        floor: Eigenvalues up to this fraction of the largest count as zero, and their directions
            map to zero. None takes the side's length times the machine epsilon.
    """

    betas: tuple[float, float] = (0.95, 0.95)
    exponent: float = -0.25
    floor: float | None = None

    def __post_init__(self) -> None:
        check_betas("betas", self.betas)
        if not -1 <= self.exponent <= 0:
            raise ValueError(f"exponent must lie in [-1, 0], got {self.exponent}")
        if self.floor is not None and not 0 <= self.floor < 1:
            raise ValueError(f"floor must lie in [0, 1), got {self.floor}")

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Unit, first moment and its sizes, and both factors."""
        *batch, m, n = shape
        sizes = {"unit": (1, 1), "first_moment": (m, n), SIZES: PER_MATRIX}
        sizes |= {"left_factor": (m, m), "right_factor": (n, n)}
        return batch_shapes(batch, sizes)

    @isolated
    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Update the averages; returns the preconditioned mean."""
        G, M = in_units(X, buffers["unit"]), buffers["first_moment"]
        M.lerp_(G, 1 - self.betas[0])
        GramFactors(self.betas[1]).update(G, buffers)
        left, right = (
            factor_power(buffers[f"{side}_factor"], self.exponent, self.floor) for side in SIDES
        )
        D = left @ M @ right * live_entries(G, buffers)
        return (D * moving(largest_entry(M), buffers[SIZES])).to(X.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the declared symmetries."""
        return ROTATIONS

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the declared invariants."""
        return NO_INVARIANTS

    def __str__(self) -> str:
        return f"Shampoo, power {self.exponent:g} per side"


def factor_power(S: Tensor, exponent: float, floor: float | None = None) -> Tensor:
    """Return the power of a positive semidefinite matrix on its range; NaN for a non-finite one.

    Args:
        S: [..., k, k].
        exponent: The power.
        floor: Eigenvalues up to this fraction of the largest count as zero. None takes k epsilons.
    """
    finite = S.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    eigenvalues, Q = symmetric_eigen(torch.where(finite, S, 0.0))
    if floor is None:
        floor = S.shape[-1] * torch.finfo(S.dtype).eps
    kept = eigenvalues > floor * eigenvalues[..., -1:]
    powers = torch.where(kept, eigenvalues, 1.0) ** exponent * kept
    return torch.where(finite, (Q * powers.unsqueeze(-2)) @ Q.mT, torch.nan)
