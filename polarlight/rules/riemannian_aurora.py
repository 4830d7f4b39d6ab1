"""Riemannian Aurora: ascent of <M, U> along the set where U'U = I and all rows have equal norm.

    Z = M - U S - diag(l) U,   S = B - U' diag(l) U,   B = sym(U'M)
    (diag(h) - P o P) l = q,   P = U U',   h = diag(P),   q_i = <M_i, U_i> - <(U B)_i, U_i>
    U <- retract(U + step Z),  retract: rows to sqrt(n/m), polar, twice

The operator is the Laplacian of the graph with weights P_ij^2: positive semidefinite with the
constant vector as its kernel, and applied without forming P: (P o P) v = rowsum((U (U' diag(v) U))
o U).

Source: Tilde Research, Aurora release (2026-05), riemannian_aurora.py; arXiv 2606.27715, algorithm
    4.
Deviations: the Laplacian has diag(h) where the release has n/m plus a shift (indefinite in places);
M is divided by its mean singular value, so the step has no scale; float32 throughout (the release
mixes dtypes and does not run); conjugate gradients take a fixed number of steps and never wait for
the host.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.cost import uniform_range
from polarlight.linalg.isolation import isolated
from polarlight.linalg.matrices import nonzero, unit_scale
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.properties import ROWS, Invariants, Symmetries, balanced_invariants
from polarlight.linalg.rows import (
    check_floor,
    inverse_row_norms,
    leverage,
    row_significance,
)
from polarlight.linalg.slot import MatrixMap, PolarMap
from polarlight.registry import registered
from polarlight.stages.equilibrate import RELATIVE_FLOOR


@registered("RiemannianPolar")
@dataclass(frozen=True, slots=True)
class RiemannianPolar(PolarMap):
    """Balanced polar factor by Riemannian ascent. For `Aurora(solver=RiemannianPolar())`.

    Shapes: tall [..., m, n] -> [..., m, n].

    Args:
        polar: The polar method; 1 + 2 steps calls.
        steps: Outer ascent steps, at least 1.
        step_size: Length of each, in units of the mean singular value of M.
        cg_steps: Conjugate-gradient steps per outer step.
        floor: Rows below this fraction of the rms row norm are noise and are not lifted to a full
            row.

    Raises:
        ValueError: If an argument is out of range.
    """

    polar: MatrixMap = NewtonSchulz(polar_express(6))
    steps: int = 3
    step_size: float = 0.1
    cg_steps: int = 20
    floor: float = RELATIVE_FLOOR

    def __post_init__(self) -> None:
        if self.steps < 1 or self.cg_steps < 1:
            raise ValueError(
                f"steps and cg_steps must be >= 1, got {self.steps} and {self.cg_steps}"
            )
        if not self.step_size > 0:
            raise ValueError(f"step_size must be > 0, got {self.step_size}")
        check_floor(self.floor)

    @isolated
    def __call__(self, M: Tensor) -> Tensor:
        """The balanced polar factor of M."""
        X = unit_scale(M)
        weight = row_significance(X, self.floor)
        U = self.polar(weight * X)
        X = X * (X.shape[-1] / nonzero(inner(X, U)))
        for _ in uniform_range(self.steps):
            U = self.retracted(U + self.step_size * tangent(X, U, self.cg_steps), weight)
        return U.to(M.dtype)

    def retracted(self, Y: Tensor, weight: Tensor) -> Tensor:
        """Back towards the set: equal rows (noise less), then orthonormal columns, twice."""
        for _ in range(2):
            Y = self.polar(weight * inverse_row_norms(Y, self.floor) * Y)
        return Y

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the polar method's on rows as units."""
        return self.polar.symmetries(m, n) & ROWS

    def invariants(self, m: int, n: int) -> Invariants:
        """Return equal rows, and singular values as equal as the polar method leaves them."""
        return balanced_invariants(self.polar.invariants(m, n))

    def __str__(self) -> str:
        return f"rows balanced by ascent, {1 + 2 * self.steps} x {self.polar}"


def inner(A: Tensor, B: Tensor) -> Tensor:
    """<A, B> of each matrix, [..., m, n] -> [..., 1, 1]."""
    return (A * B).sum(dim=(-2, -1), keepdim=True)


def tangent(M: Tensor, U: Tensor, cg_steps: int) -> Tensor:
    """M projected onto the tangent space at U, [..., m, n] -> [..., m, n]."""
    B = U.mT @ M
    B = (B + B.mT) / 2
    q = ((M - U @ B) * U).sum(dim=-1, keepdim=True)
    rows = solve_laplacian(U, q, cg_steps)
    return M - U @ (B - U.mT @ (rows * U)) - rows * U


def laplacian(U: Tensor, v: Tensor) -> Tensor:
    """(diag(h) - P o P) v for v [..., m, 1], with P = U U' never formed."""
    return leverage(U) * v - ((U @ (U.mT @ (v * U))) * U).sum(dim=-1, keepdim=True)


def solve_laplacian(U: Tensor, q: Tensor, steps: int) -> Tensor:
    """The l of mean zero with (diag(h) - P o P) l = q, by conjugate gradients from zero."""
    floor = torch.finfo(q.dtype).eps * U.shape[-1] / U.shape[-2]
    solution = torch.zeros_like(q)
    residual = without_kernel(q, U)
    search, energy = residual, inner(residual, residual)
    for _ in uniform_range(steps):
        image = laplacian(U, search)
        curvature = inner(search, image)
        useful = curvature > floor * inner(search, search)
        length = torch.where(useful, energy / nonzero(curvature), 0.0)
        solution = solution + length * search
        residual = without_kernel(residual - length * image, U)
        previous, energy = energy, inner(residual, residual)
        search = residual + energy / nonzero(previous) * search
    return without_kernel(solution, U)


def without_kernel(v: Tensor, U: Tensor) -> Tensor:
    """v, [..., m, 1], without what the Laplacian does not see: zero rows of U, and the mean."""
    live = leverage(U) > 0
    mean = (v * live).sum(dim=-2, keepdim=True) / nonzero(live.sum(dim=-2, keepdim=True))
    return (v - mean) * live
