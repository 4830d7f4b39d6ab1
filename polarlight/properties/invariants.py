"""Invariants of the updates of a rule, combined from what its slots declare, and their measures.

The last slot that shapes a matrix decides: a polar factor after row normalisation is a partial
isometry, row normalisation after a polar factor has equal rows. `diagnostics.rule_check` samples a
run for them. A measure is zero when the invariant is kept exactly. Limits leave room for rounding
to bfloat16 and for the polynomials of the rule's own engine: five of Jordan's steps keep singular
values within a factor of 1.7 of one another, and are not asked for more.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from polarlight.linalg.matrices import unit_scale
from polarlight.linalg.properties import Invariant, Invariants, usual_limits
from polarlight.linalg.rows import row_norms
from polarlight.rule import Rule, UpdateRule

PROBES = 8
"""Vectors that symmetry is tried on."""


def invariants(rule: Rule, m: int, n: int) -> Invariants:
    """Return what a rule keeps on m x n matrices, each with the limit of its measure."""
    if not isinstance(rule, UpdateRule):
        return usual_limits(Invariant.FINITE, Invariant.MOVES)
    kept = usual_limits(Invariant.SPECTRAL)
    for slot in rule.slots:
        if not slot.only_rescales(m, n):
            own = slot.invariants(m, n)
            spectral = Invariant.SPECTRAL in kept
            kept = own if spectral else {k: v for k, v in own.items() if k != Invariant.SPECTRAL}
    moves = all(slot.moves(m, n) for slot in rule.slots)
    always = usual_limits(Invariant.FINITE, *([Invariant.MOVES] if moves else []))
    return {**kept, **always}


def measure(invariant: Invariant, M: Tensor, D: Tensor) -> Tensor:
    """Return how far the update D of M, both [..., m, n], is from the invariant; a scalar."""
    return _MEASURES[invariant](unit_scale(M), unit_scale(D))


def _finite(M: Tensor, D: Tensor) -> Tensor:
    return (~D.isfinite()).any().float()


def _moves(M: Tensor, D: Tensor) -> Tensor:
    moved, asked = ((X != 0).any(dim=-1).any(dim=-1) for X in (D, M))
    return (asked & ~moved).any().float()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """|a| / |b| per matrix, the largest of the batch; zero where b is zero."""
    top, bottom = (torch.linalg.matrix_norm(x) for x in (a, b))
    result: Tensor = (top / torch.where(bottom == 0, 1.0, bottom)).amax()
    return result


def _tall(X: Tensor) -> Tensor:
    return X if X.shape[-2] >= X.shape[-1] else X.mT


def _isometry(M: Tensor, D: Tensor) -> Tensor:
    """|D D'D / c^2 - D| / |D|, c the best such number: directions that hardly move count little."""
    D = _tall(D)
    cube = D @ (D.mT @ D)
    size = (cube * D).sum(dim=(-2, -1), keepdim=True)
    square = D.square().sum(dim=(-2, -1), keepdim=True)
    return _ratio(cube * (square / torch.where(size == 0, 1.0, size)) - D, D)


def _spectral(M: Tensor, D: Tensor) -> Tensor:
    """How far M'D and MD' are from symmetric, as some fixed vectors see it.

    Both are, where M and D have the same singular vectors. One of them is not enough: a polar
    factor of each half of a tall matrix has a symmetric M'D.
    """
    return torch.maximum(_antisymmetry(M, D), _antisymmetry(M.mT, D.mT))


def _antisymmetry(M: Tensor, D: Tensor) -> Tensor:
    """|(A - A') X| / |A X| for A = M D'."""
    i, j = (torch.arange(k, dtype=M.dtype, device=M.device) for k in (M.shape[-2], PROBES))
    X = torch.sin(i[:, None].square() * (j + 1) + 1)
    product = M @ (D.mT @ X)
    return _ratio(product - D @ (M.mT @ X), product)


def _equal_rows(M: Tensor, D: Tensor) -> Tensor:
    """Standard deviation over mean of the norms of rows, those that are zero left out."""
    norms = row_norms(D).squeeze(-1)
    count = (norms != 0).sum(dim=-1).clamp(min=1)
    mean = norms.sum(dim=-1) / count
    variance = norms.square().sum(dim=-1) / count - mean.square()
    deviation = variance.clamp(min=0).sqrt()
    return (deviation / torch.where(mean == 0, 1.0, mean)).amax()


def _centred(M: Tensor, D: Tensor) -> Tensor:
    return _ratio(D.mean(dim=-2, keepdim=True) * D.shape[-2] ** 0.5, D)


_MEASURES: dict[Invariant, Callable[[Tensor, Tensor], Tensor]] = {
    Invariant.FINITE: _finite,
    Invariant.MOVES: _moves,
    Invariant.ISOMETRY: _isometry,
    Invariant.SPECTRAL: _spectral,
    Invariant.EQUAL_ROWS: _equal_rows,
    Invariant.EQUAL_COLUMNS: lambda M, D: _equal_rows(M.mT, D.mT),
    Invariant.CENTRED: _centred,
}
