"""Measures of the invariants of a rule's updates, on the device and without a host sync.

An update is compared with its momentum on directions that the momentum determines. Singular vectors
of equal singular values may be mixed, and those of values at the level of rounding are arbitrary.
So nothing is asked of single singular vectors. The momentum M is mapped to weights

    W = U w(S)^3 V',    w(s) = 1 far above CUT_OFF of the Frobenius norm, s / CUT_OFF far below it

and an update D with the singular vectors of M makes W'D and WD' symmetric, whatever basis is chosen
among equal singular values. Rounding an M by a matrix N changes them by about N, however small the
other singular values are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from polarlight.linalg.coefficients import PADE_QUINTIC, Schedule
from polarlight.linalg.matrices import at_least_float32, nonzero, unit_scale
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import Schatten8
from polarlight.linalg.properties import Invariant
from polarlight.linalg.rows import row_norms
from polarlight.rule import Rule, UpdateRule

PROBES = 8
"""Vectors that symmetry is tried on where the product is as large as the long side."""

ROUNDS = 16
"""Steps to a row scale."""

DAMPED = 0.9
"""Eigenvalues up to this one are reduced by 1e-4 or more against 1."""

_STEPS = 6
CUT_OFF = PADE_QUINTIC.steps[0][0] ** -_STEPS
"""About 0.023: below it directions of the momentum lose weight by the third power."""

_MONOTONE = Schedule(
    name="weight", steps=PADE_QUINTIC.steps[:1] * _STEPS, source="Kenney and Laub (1991)"
)
"""A larger singular value never weighs less."""

_LEVEL = Schedule(name="level", steps=PADE_QUINTIC.steps[:1] * 5, source="Kenney and Laub (1991)")
"""From 0.2 to 1 within 1e-3; a direction over its Schatten-8 norm starts at 0.4 or so."""


def measure(invariant: Invariant, M: Tensor, D: Tensor, rule: Rule | None = None) -> Tensor:
    """Return how far the update D of M, both [..., m, n], is from keeping the invariant."""
    return Update(M, D, rule, {invariant: 0.0, Invariant.SPECTRAL: 0.0}).measure(invariant)


@dataclass(frozen=True, slots=True)
class Reference:
    """A direction computed again.

    Attributes:
        direction: Before the rule's factor for the shape, [..., m, n].
        rows_free: Whether its rows have other norms than the rule gives them: a second moment of
            rows was left out. The Frobenius norm is right.
    """

    direction: Tensor
    rows_free: bool


def balanced_input(rule: UpdateRule, M: Tensor) -> Tensor:
    """M after the rule's balance, if that has no memory; else M itself."""
    balance = rule.balance
    if balance is None or balance.buffer_shapes(M.shape):
        return M
    return balance.apply(M, {})


def reference(rule: UpdateRule, M: Tensor) -> Reference:
    """Apply the rule's slots to M, but for a second moment of rows; for a repeatable rule."""
    m, n = M.shape[-2:]
    X = M
    for slot in rule.slots:
        X = X if slot.rescales_rows(m, n) else slot.apply(X, {})
    return Reference(at_least_float32(X), any(slot.rescales_rows(m, n) for slot in rule.slots))


@dataclass(frozen=True)
class Update:
    """One update beside its momentum.

    Attributes:
        momentum: What the rule mapped, [..., m, n].
        direction: What is multiplied by -lr, in the same shape.
        rule: The rule that is said to have made it.
        kept: What it invariants: says which weights the measures use.
    """

    momentum: Tensor
    direction: Tensor
    rule: Rule | None
    kept: Mapping[Invariant, float]

    def measure(self, invariant: Invariant) -> Tensor:
        """Return how far it is from keeping the invariant: a device scalar, zero if it is kept."""
        return _MEASURES[invariant](self)

    @cached_property
    def mapped(self) -> Tensor:
        """The momentum at unit scale, after a balance without memory."""
        M = self.momentum
        return unit_scale(balanced_input(self.rule, M) if isinstance(self.rule, UpdateRule) else M)

    @cached_property
    def moved(self) -> Tensor:
        """The direction at unit scale."""
        return unit_scale(self.direction)

    @cached_property
    def scaled(self) -> Tensor:
        """The direction over the rule's factor for this shape, in float32 or float64."""
        D = at_least_float32(self.direction)
        return D / self.rule.scale(*D.shape[-2:]) if isinstance(self.rule, UpdateRule) else D

    @cached_property
    def weights(self) -> Tensor:
        """W, tall: of the matrix whose singular vectors D has; D itself if that is unknown."""
        if Invariant.ROWS_SCALED in self.kept:
            return _weights(rows_scaled(self.mapped, self.moved))
        if Invariant.COLUMNS_SCALED in self.kept:
            return _weights(rows_scaled(self.mapped.mT, self.moved.mT).mT)
        return _weights(self.mapped) if Invariant.SPECTRAL in self.kept else _tall(self.moved)

    @cached_property
    def again(self) -> Reference:
        """Return the rule's direction for the momentum, computed again."""
        assert isinstance(self.rule, UpdateRule)
        return reference(self.rule, self.momentum)


def _weights(M: Tensor) -> Tensor:
    """W of M, turned so that it is tall."""
    W = _tall(NewtonSchulz(_MONOTONE, M.dtype)(M))
    return W @ (W.mT @ W)


def rows_scaled(M: Tensor, D: Tensor) -> Tensor:
    """M with its rows rescaled to what D is the polar factor of, as nearly as there is such a one.

    D = polar(RM) means RM = DH with a symmetric H. For the row norms r of RM, the projection onto
    such products is r -> diag(D sym(D' diag(r) X) X') with X of unit rows; r is its eigenvector of
    eigenvalue 1, and all others are smaller. Chebyshev steps damp those up to DAMPED. D's singular
    values are brought to 1 first: Jordan's steps leave 0.7 to 1.2, of which a scale would be made.
    """
    norms = row_norms(M)
    X = M / nonzero(norms)
    D = NewtonSchulz(_LEVEL, D.dtype, Schatten8())(D)

    def step(r: Tensor) -> Tensor:
        H = D.mT @ (r * X)  # [..., n, n]
        return ((D @ (H + H.mT)) * X).sum(dim=-1, keepdim=True) / DAMPED - r

    before = torch.ones_like(norms)  # [..., m, 1]
    scale = step(before)
    for _ in range(ROUNDS - 1):
        scale, before = 2 * step(scale) - before, scale
    return scale.clamp_min(0.0) * X


def _finite(u: Update) -> Tensor:
    return (~u.direction.isfinite()).any().float()


def _moves(u: Update) -> Tensor:
    moved, asked = ((X != 0).any(dim=-1).any(dim=-1) for X in (u.direction, u.momentum))
    return (asked & ~moved).any().float()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """|a| / |b| per matrix, the largest of the batch; zero where both are."""
    top, bottom = (torch.linalg.matrix_norm(x) for x in (a, b))
    result: Tensor = (top / nonzero(bottom)).amax()
    return result


def _tall(X: Tensor) -> Tensor:
    return X if X.shape[-2] >= X.shape[-1] else X.mT


def _isometry(u: Update) -> Tensor:
    """|W (D'D / c^2 - I)| / |W|, c the best such number."""
    W, D = u.weights, _tall(u.moved)
    product = W @ (D.mT @ D)
    return _ratio(product / nonzero(_mean_square(W, product)) - W, W)


def _mean_square(W: Tensor, product: Tensor) -> Tensor:
    """<W, product> / |W|^2 per matrix, [..., 1, 1]: D's mean squared singular value, weighted."""
    top, bottom = ((W * X).sum(dim=(-2, -1), keepdim=True) for X in (product, W))
    return top / nonzero(bottom)


def _size(u: Update) -> Tensor:
    """|c - 1|, c the weighted mean singular value over the rule's factor; 0 for a zero matrix."""
    W, D = u.weights, _tall(u.scaled)
    c = _mean_square(W, W @ (D.mT @ D)).sqrt()
    asked = W.square().sum(dim=(-2, -1), keepdim=True) != 0
    return torch.where(asked, (c - 1).abs(), 0.0).amax()


def _spectral(u: Update) -> Tensor:
    """Return the distance of W'D and WD' from symmetric, and of W'D from positive semidefinite.

    One product is not enough: a polar factor of each half of a tall matrix has a symmetric W'D.
    """
    W, D = u.weights, _tall(u.moved)
    short = W.mT @ D
    size = torch.linalg.matrix_norm(short)
    trace = short.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    negative = torch.where(size == 0, 0.0, 1 - trace / nonzero(size)).amax().clamp_min(0.0)
    found = torch.stack([_ratio(short - short.mT, short), _antisymmetry(W, D), negative])
    return found.amax()


def _antisymmetry(M: Tensor, D: Tensor) -> Tensor:
    """|(A - A') X| / |A X| for A = M D'."""
    i, j = (torch.arange(k, dtype=M.dtype, device=M.device) for k in (M.shape[-2], PROBES))
    X = torch.sin(i[:, None].square() * (j + 1) + 1)
    product = M @ (D.mT @ X)
    return _ratio(product - D @ (M.mT @ X), product)


def _repeats(u: Update) -> Tensor:
    """|(D - again) W'W| / |again W'W|; rows are brought to one length first if these are free."""
    D, again = u.scaled, u.again.direction
    off = torch.zeros((), dtype=D.dtype, device=D.device)
    if u.again.rows_free:
        sizes = torch.linalg.matrix_norm(D), torch.linalg.matrix_norm(again)
        off = torch.where(sizes[1] == 0, sizes[0], (sizes[0] / nonzero(sizes[1]) - 1).abs()).amax()
        D = D * (row_norms(again) / nonzero(row_norms(D)))
    D, again = _tall(D), _tall(again)
    if Invariant.SPECTRAL in u.kept or u.again.rows_free:
        W = _weights(u.mapped)
        D, again = (X @ (W.mT @ W) for X in (D, again))
    return torch.maximum(off, _ratio(D - again, again))


def _equal_rows(D: Tensor) -> Tensor:
    """Standard deviation over mean of the norms of rows, those that are zero left out."""
    norms = row_norms(D).squeeze(-1)
    count = (norms != 0).sum(dim=-1).clamp(min=1)
    mean = norms.sum(dim=-1) / count
    variance = norms.square().sum(dim=-1) / count - mean.square()
    deviation = variance.clamp(min=0).sqrt()
    return (deviation / nonzero(mean)).amax()


def _centred(u: Update) -> Tensor:
    return _ratio(u.moved.mean(dim=-2, keepdim=True) * u.moved.shape[-2] ** 0.5, u.moved)


_MEASURES: dict[Invariant, Callable[[Update], Tensor]] = {
    Invariant.FINITE: _finite,
    Invariant.MOVES: _moves,
    Invariant.ISOMETRY: _isometry,
    Invariant.SIZE: _size,
    Invariant.SPECTRAL: _spectral,
    Invariant.ROWS_SCALED: _spectral,
    Invariant.COLUMNS_SCALED: _spectral,
    Invariant.REPEATS: _repeats,
    Invariant.EQUAL_ROWS: lambda u: _equal_rows(u.moved),
    Invariant.EQUAL_COLUMNS: lambda u: _equal_rows(u.moved.mT),
    Invariant.CENTRED: _centred,
}
