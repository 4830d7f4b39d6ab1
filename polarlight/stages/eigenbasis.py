"""Eigenbases of a matrix's two Kronecker factors: how they start, and how they follow.

Where a factor has no weight, its eigenvectors are whatever rounding makes them, and an update in
their basis would differ from machine to machine. Both functions here leave such directions where
they were, as far as orthogonality allows: at the start those are the unit vectors, later the
vectors of the old basis.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.cost import uniform_range
from polarlight.linalg.isolation import isolated
from polarlight.linalg.matrices import nonzero
from polarlight.registry import registered

NOISE = 100
"""Machine epsilons, relative to the largest value, below which a value is rounding."""


@isolated
def starting_basis(G: Tensor) -> Tensor:
    """Eigenvectors of G G', largest eigenvalue first, [..., m, n] -> [..., m, m].

    Non-finite matrices get unit vectors. Waits for the device: decompositions check their success.
    """
    finite = G.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    U, S, _ = torch.linalg.svd(torch.where(finite, G, 0.0), full_matrices=False)
    relative = S / nonzero(NOISE * torch.finfo(S.dtype).eps * S[..., :1])
    noise = (1 / (1 + relative**4)).unsqueeze(-2)
    units = torch.eye(*U.shape[-2:], dtype=U.dtype, device=U.device)
    basis: Tensor = torch.linalg.qr((1 - noise) * U + noise * units, mode="complete").Q
    return basis


@registered("PowerIteration")
@dataclass(frozen=True, slots=True)
class PowerIteration:
    """Orthogonal iteration: Q <- orthonormal factor of (S + floor s I) Q, s the largest q' S q.

    Args:
        rounds: Steps per call, at least 1; many of them give the eigenvectors themselves.
        sort: First order the columns by q' S q, largest first.
        floor: The shift. Eigenvalues far below this fraction of the largest one are not followed,
            their vectors kept; in [0, 1). None takes 100 machine epsilons.
    """

    rounds: int = 1
    sort: bool = True
    floor: float | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be >= 1, got {self.rounds}")
        if self.floor is not None and not 0 <= self.floor < 1:
            raise ValueError(f"floor must lie in [0, 1), got {self.floor}")

    @isolated
    def __call__(self, S: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
        """The new basis, and which old column [..., n] each new one continues."""
        floor = NOISE * torch.finfo(S.dtype).eps if self.floor is None else self.floor
        order = torch.arange(Q.shape[-1], device=Q.device).expand(*Q.shape[:-2], -1)
        for _ in uniform_range(self.rounds):
            image = S @ Q
            eigenvalues = (Q * image).sum(dim=-2)
            shift = floor * nonzero(eigenvalues.amax(dim=-1, keepdim=True))
            image = image + shift.unsqueeze(-2) * Q
            if self.sort:
                ranked = torch.where(eigenvalues > shift, eigenvalues, 0.0)
                place = ranked.argsort(dim=-1, descending=True, stable=True)
                order = order.gather(-1, place)
                image = image.take_along_dim(place.unsqueeze(-2), dim=-1)
            Q = torch.linalg.qr(image).Q
        return Q, order
