"""Orthonormal columns with given row leverages: their tangent spaces, and the way back to them.

    U'U = I,   |U_i|^2 = s_i:     tangent Z:  U'Z skew,  <U_i, Z_i> = 0
    A = Z + U S + diag(l) U,      S = B - U' diag(l) U,   B = sym(U'A)
    (diag(h) - P o P) l = q,      P = U U',   h = diag(P),   q_i = <A_i - (U B)_i, U_i>

The same Laplacian is the Hessian of the convex f(t) = log det(sum_i e^{t_i} y_i y_i') - sum_i s_i
t_i, whose gradient is h - s: its minimum is the row scale D = e^{t/2} for which polar(D Y) has the
leverages s, and Newton's method finds it in a few steps. Formed and factored here, m x m, since an
exact solver asks for its inverse many times at one U.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.cost import uniform_range
from polarlight.linalg.eigen import EigenPolar
from polarlight.linalg.matrices import nonzero
from polarlight.linalg.rows import leverage

ORTHONORMAL = EigenPolar()
"""For factors that are nearly orthonormal, where its accuracy is that of rounding."""

_LARGEST_STEP = 1.0
"""Of t: beyond it Newton's step is shortened, which keeps it convergent from afar."""


def balanced_polar(Y: Tensor, shares: Tensor, rounds: int) -> Tensor:
    """Return polar(D Y) with leverages near `shares`, [..., m, n] and [..., m, 1] -> [..., m, n].

    Args:
        Y: Full column rank, or a zero column space beyond its rank.
        shares: At least 0, at most 1; their sum is the rank. Rows without a share become zero.
        rounds: Newton steps. Near balance each squares the error; where no such D exists, D stays
            within e^(rounds / 2).
    """
    t = torch.zeros_like(shares)  # [..., m, 1], D = e^(t/2)
    Y = Y * (shares > 0)
    for _ in uniform_range(rounds):
        U = ORTHONORMAL((t / 2).exp() * Y)  # [..., m, n]
        # Newton's step on f(t): Laplacian times step = shares - leverages.
        step = solved(laplacian_factor(U), shares - leverage(U), U)
        longest = step.abs().amax(dim=-2, keepdim=True)
        t = t + step * (_LARGEST_STEP / longest.clamp(min=_LARGEST_STEP))
    return ORTHONORMAL((t / 2).exp() * Y)


def scaled_towards(Y: Tensor, shares: Tensor, rounds: int) -> Tensor:
    """Return polar(D Y) after rounds of D_i <- D_i (s_i / h_i)^(1/2): slow but safe from afar."""
    D = torch.ones_like(shares)
    for _ in uniform_range(rounds):
        D = D * (shares / nonzero(leverage(ORTHONORMAL(D * Y)))).sqrt()
    return ORTHONORMAL(D * Y)


def laplacian_factor(U: Tensor) -> Tensor:
    """Return the Cholesky factor of diag(h) - P o P, made definite on its kernel.

    [..., m, n] -> [..., m, m].

    The kernel holds the constants, rows of zeros, and more where rows fall into groups that are
    orthogonal to each other.
    """
    P = U @ U.mT  # [..., m, m]
    h = leverage(U)  # [..., m, 1]
    live = (h > 0).to(U.dtype)
    size = h.amax(dim=-2, keepdim=True)
    ridge = 100 * torch.finfo(U.dtype).eps * nonzero(size)
    diagonal = (h + ridge + (1 - live)).squeeze(-1)  # 1 for rows of zeros
    # The constants on the live rows, at the size of the other eigenvalues.
    constants = size * live @ live.mT / nonzero(live.sum(dim=-2, keepdim=True))
    matrix = torch.diag_embed(diagonal) - P.square() + constants
    factor: Tensor = torch.linalg.cholesky_ex(matrix).L
    return factor


def solved(factor: Tensor, q: Tensor, U: Tensor) -> Tensor:
    """Return the l of mean zero with (diag(h) - P o P) l = q, for q [..., m, 1] of mean zero."""
    live = (leverage(U) > 0).to(U.dtype)
    mean = (q * live).sum(dim=-2, keepdim=True) / nonzero(live.sum(dim=-2, keepdim=True))
    return torch.cholesky_solve((q - mean) * live, factor) * live


@dataclass(frozen=True, slots=True)
class TangentSpace:
    """The tangent space at U [..., m, n], with the factored Laplacian."""

    U: Tensor
    factor: Tensor

    @classmethod
    def at(cls, U: Tensor) -> "TangentSpace":
        """Return the space at U, whose columns are orthonormal; the leverages may be any."""
        return cls(U, laplacian_factor(U))

    def multipliers(self, A: Tensor) -> tuple[Tensor, Tensor]:
        """Return S [..., n, n] and l [..., m, 1] with A - U S - diag(l) U tangent."""
        B = self.U.mT @ A
        B = (B + B.mT) / 2  # [..., n, n]
        # Row by row: what is left of A along U_i after the symmetric part.
        q = ((A - self.U @ B) * self.U).sum(dim=-1, keepdim=True)
        rows = solved(self.factor, q, self.U)
        return B - self.U.mT @ (rows * self.U), rows

    def project(self, A: Tensor) -> Tensor:
        """Return the tangent nearest to A, [..., m, n] -> [..., m, n]."""
        S, rows = self.multipliers(A)
        return A - self.U @ S - rows * self.U
