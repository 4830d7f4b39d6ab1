"""Aurora's problem solved to the end: the yardstick for every cheaper way.

    maximise <M, U>   subject to   U'U = I   and   |U_i|^2 = n/m      (tall M, m x n)
    at a maximum  M = U S + diag(l) U,  S = S';  global if  W_ij = l_i + s_j >= 0  (s of S)
    Newton:  project(W o Z) = project(M)  in the eigenbasis of S;   U <- polar(D (U + Z)),
             D > 0 diagonal with equal leverages;  trust region, conjugate gradients

The polar factor of M, balanced, is the start. W is nearly the whole Hessian: its inverse, bounded,
is the preconditioner.

Source: ours, for the problem of Tilde Research, "Aurora" (2026), arXiv 2606.27715; trust regions
    on manifolds: Absil, Baker, Gallivan (2007).
Deviations: nothing published to deviate from. A row that is noise gets less than n/m, as in
`BalancedPolar`; the number of steps is fixed, and nothing is decided on the host.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.balance import (
    TangentSpace,
    balanced_polar,
    scaled_towards,
)
from polarlight.linalg.cost import uniform_range
from polarlight.linalg.decomposition import by_decomposition, check_dtype
from polarlight.linalg.matrices import nonzero
from polarlight.linalg.properties import ROWS, Invariant, Invariants, Symmetries, usual_limits
from polarlight.linalg.rows import check_floor, leverage, row_norms, row_significance
from polarlight.linalg.slot import MatrixMap, PolarMap
from polarlight.linalg.svd import ExactPolar
from polarlight.registry import registered
from polarlight.rules.riemannian_aurora import inner
from polarlight.stages.equilibrate import RELATIVE_FLOOR

_LEAST = 0.01
"""Least entry of W in the preconditioner, at the maximum; M has mean singular value 1."""


@registered("ExactBalanced")
@dataclass(frozen=True, slots=True)
class ExactBalanced(PolarMap):
    """Balanced polar factor by Newton's method. For `Aurora(solver=ExactBalanced())`.

    Shapes: tall [..., m, n] -> [..., m, n] in the dtype of M.

    Args:
        polar: The polar method of the start, and where nothing is balanced.
        steps: Newton steps, at least 1.
        cg_steps: Conjugate-gradient steps per Newton step, at least 1.
        floor: Rows below this fraction of the rms row norm are noise and are not lifted to a full
            row.
        dtype: Dtype of the ascent, float32 or float64. None takes that of M, at least float32.

    Cost: 410 times the flops of five Newton-Schulz steps at 4:1, and m^2 numbers per matrix beside
    it. Meant to judge by, not to train with.

    Accuracy: the tangent gradient is below 1e-6 of |M| on recorded momentum and below 1e-5 on every
    skewed matrix of the tests; unit singular values and equal rows to rounding, where a row scale
    that levels them exists (not where more than a share k/n of the rows lies in k dimensions). A
    local maximum in principle; `upper_bound` says how far above it the global one can be. A zero
    row stays zero and the others share n / (m - zeros); columns of zeros and other missing rank are
    left out. NaN or Inf makes that matrix NaN and no other.

    Raises:
        ValueError: If an argument is out of range.
    """

    polar: MatrixMap = ExactPolar()
    steps: int = 20
    cg_steps: int = 20
    floor: float = RELATIVE_FLOOR
    dtype: torch.dtype | None = torch.float64

    def __post_init__(self) -> None:
        if self.steps < 1 or self.cg_steps < 1:
            raise ValueError(
                f"steps and cg_steps must be >= 1, got {self.steps} and {self.cg_steps}"
            )
        check_floor(self.floor)
        check_dtype(self.dtype)

    def __call__(self, M: Tensor) -> Tensor:
        """The best balanced polar factor of M."""
        return by_decomposition(M, self.dtype, self._solved)

    def continued(self, M: Tensor, solution: Tensor) -> Tensor:
        """The same from an earlier M's solution, where that is the better start.

        Matrices that moved by a hundredth of their size are solved in three Newton steps, of which
        the polar factor as a start needs six.

        Args:
            M: The matrices, tall [..., m, n].
            solution: What came out for similar ones, of the same shape.

        Raises:
            ValueError: If the shapes differ.
        """
        if solution.shape != M.shape:
            raise ValueError(
                f"a solution of shape {tuple(solution.shape)} is no start for {tuple(M.shape)}"
            )
        return by_decomposition(M, self.dtype, lambda X: self._solved(X, solution))

    def _solved(self, X: Tensor, solution: Tensor | None = None) -> Tensor:
        U = self.polar(X)
        X = X * (X.shape[-1] / nonzero(inner(X, U)))
        weight = row_significance(X, self.floor).square()
        rank = leverage(U).sum(dim=-2, keepdim=True)
        shares = weight * (rank / nonzero(weight.sum(dim=-2, keepdim=True)))
        U = balanced_polar(scaled_towards(U, shares, rounds=2), shares, rounds=8)
        if solution is not None:
            V = balanced_polar(solution.to(X.dtype), shares, rounds=8)
            U = torch.where(inner(X, V) > inner(X, U), V, U)
        return ascended(X, U, shares, self.steps, self.cg_steps)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the polar method's on rows as units."""
        return self.polar.symmetries(m, n) & ROWS

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the declared invariants."""
        return usual_limits(Invariant.EQUAL_ROWS, Invariant.ISOMETRY, Invariant.SIZE)

    def __str__(self) -> str:
        return f"rows balanced exactly, {self.steps} Newton steps from {self.polar}"


def ascended(X: Tensor, U: Tensor, shares: Tensor, steps: int, cg_steps: int) -> Tensor:
    """The maximum of <X, U> that Newton steps reach from a balanced U, never below the start.

    X: [..., m, n] of mean singular value 1; shares: the row leverages [..., m, 1].
    """
    radius = (inner(U, U) / 16).sqrt()
    for _ in uniform_range(steps):
        quadratic = Quadratic.at(X, U)
        Z, gain, length = quadratic.maximised(radius, cg_steps)
        V = balanced_polar(U + Z @ (U.mT @ U), shares, rounds=3)  # what U leaves out stays out
        value = inner(X, U)
        slack = 1e3 * torch.finfo(X.dtype).eps * value.abs()
        ratio = (inner(X, V) - value + slack) / (gain + slack)
        U = torch.where(ratio > 0.1, V, U)
        longer = (ratio > 0.75) & (length > 0.9 * radius)
        radius = radius * torch.where(ratio < 0.25, 0.25, torch.where(longer, 2.0, 1.0))
    return U


@dataclass(frozen=True, slots=True)
class Quadratic:
    """<G, Z> - <Z, W o Z> / 2 on the tangent space at U: the objective to second order.

    Everything is in the eigenbasis of S, so that Z @ S is a scaling of columns.
    """

    space: TangentSpace
    gradient: Tensor
    W: Tensor
    basis: Tensor

    @classmethod
    def at(cls, X: Tensor, U: Tensor) -> "Quadratic":
        """The objective <X, U> at U."""
        space = TangentSpace.at(U)
        S, rows = space.multipliers(X)
        s, Q = torch.linalg.eigh(S)
        gradient = X - U @ S - rows * U
        W = rows + s.unsqueeze(-2)
        return cls(TangentSpace(U @ Q, space.factor), gradient @ Q, W, Q)

    def _least_curvature(self) -> Tensor:
        """Far from the maximum W says little: half an entry of the gradient more, in the rms."""
        size, unit = inner(self.gradient, self.gradient), inner(self.space.U, self.space.U)
        return _LEAST + (size / nonzero(unit)).sqrt() / 2

    def maximised(self, radius: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Near the maximum within the radius, by conjugate gradients that stop at the boundary.

        Returns:
            The step Z [..., m, n], in the basis of U; the gain that it promises, and its length in
            the norm of the preconditioner, [..., 1, 1] each.
        """
        project, metric = self.space.project, torch.maximum(self.W, self._least_curvature())
        Z = image = torch.zeros_like(self.gradient)
        residual = self.gradient
        search = eased = project(residual / metric)
        energy = first = inner(residual, eased)
        zz = zp = torch.zeros_like(energy)
        pp, going = energy, energy > 0
        for _ in uniform_range(steps):
            H = project(self.W * search)
            curvature = inner(search, H)
            best = energy / nonzero(curvature)
            leaves = (curvature <= 0) | (zz + best * (2 * zp + best * pp) >= radius.square())
            root = (zp.square() + pp * (radius.square() - zz)).clamp(min=0).sqrt()
            length = torch.where(leaves, (root - zp) / nonzero(pp), best) * going
            Z, image = Z + length * search, image + length * H
            zz = zz + length * (2 * zp + length * pp)
            residual = residual - length * H
            eased = project(residual / metric)
            previous, energy = energy, inner(residual, eased)
            going = going & ~leaves & (energy > 1e-20 * first)
            turn = energy / nonzero(previous)
            zp, pp = turn * (zp + length * pp), energy + turn.square() * pp
            search = eased + turn * search
        return Z @ self.basis.mT, inner(self.gradient, Z) - inner(Z, image) / 2, zz.sqrt()


def upper_bound(M: Tensor, U: Tensor) -> Tensor:
    """No balanced V has a larger <M, V>, [..., m, n] and the same -> [..., 1, 1].

    By weak duality, for Y = diag(l + c) U with the multipliers l of U and the best c:

        <M, V> = <M - Y, V> + <Y, V> <= |M - Y|_* + sum_i |Y_i| |V_i|,   |V_i| = |U_i|

    Close to <M, U> at a global maximum, and some way above it elsewhere.
    """
    S, rows = TangentSpace.at(U).multipliers(M)
    shares = leverage(U).mT
    s = torch.linalg.eigvalsh(S)
    shifts = torch.cat([s.unsqueeze(-1), -rows], dim=-2)
    guess = (s.unsqueeze(-2) - shifts).abs().sum(dim=-1, keepdim=True)
    guess = guess + (shares * (rows.mT + shifts).abs()).sum(dim=-1, keepdim=True)
    best = shifts.gather(-2, guess.argmin(dim=-2, keepdim=True))
    scaled = (rows + best) * U
    nuclear: Tensor = torch.linalg.svdvals(M - scaled).sum(dim=-1)
    lengths: Tensor = (row_norms(scaled) * row_norms(U)).sum(dim=-2, keepdim=True)
    return nuclear[..., None, None] + lengths
