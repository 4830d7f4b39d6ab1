"""Centring: an update without the part that all rows share.

    P X = X - 1 (1' X) / m,        U = P f(P M)

softmax(W x) is the same for W and W + 1 a': an untied head or a softmax router has gradients with
1' G = 0. A map that rescales rows leaves that space, and the second projection brings the update
back into it; after a polar factor it removes rounding only. Rows that were brought to unit norm
are shorter or longer than that afterwards.

Wrong wherever shared rows matter: tied and input embeddings, sigmoid routers, capped logits. There
1' G is not zero, and centring deletes what the gradient asks for.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.matrices import at_least_float32
from polarlight.linalg.properties import (
    RIGHT,
    SHARED,
    Invariant,
    Invariants,
    Symmetries,
    Symmetry,
    usual_limits,
)
from polarlight.linalg.row_sums import ALL_ROWS, Rows, over_rows
from polarlight.linalg.slot import GRADIENT, Buffers, Slot, Stage
from polarlight.registry import registered
from polarlight.rule import UpdateRule
from polarlight.stages.orientation import each_slot


def without_mean_row(X: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
    """Return X with the mean of its rows subtracted from each, [..., m, n] -> [..., m, n]."""
    wide = at_least_float32(X)
    if rows is ALL_ROWS:
        return (wide - wide.mean(dim=-2, keepdim=True)).to(X.dtype)
    mean = over_rows(wide, rows) / rows.count(X)
    return (wide - mean).to(X.dtype)


@registered("Centred")
@dataclass(frozen=True, slots=True)
class Centred(Stage):
    """A slot between two projections, P f(P M), [..., m, n] -> [..., m, n].

    The columns of the result sum to zero. A single row has nothing left: it maps to zero.
    """

    inner: Slot

    def select(self, m: int, n: int) -> Slot:
        """Return the inner slot for this shape."""
        return self.inner.select(m, n)

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return those of the inner slot."""
        return self.inner.buffer_shapes(shape)

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """The centred result of the centred matrix."""
        return self._on_rows(X, ALL_ROWS, buffers)

    def _on_rows(self, X: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
        """Return those rows of the image, if the inner slot can."""
        if GRADIENT in buffers:
            buffers = {**buffers, GRADIENT: without_mean_row(buffers[GRADIENT], rows)}
        mapped = self.inner.apply_on_rows(without_mean_row(X, rows), rows, buffers)
        return without_mean_row(mapped, rows)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return what commutes with projections: actions on columns, permutations of rows."""
        kept = RIGHT | {Symmetry.LEFT_PERMUTATIONS, Symmetry.COLUMN_RESCALING}
        return (self.inner.symmetries(m, n) & kept) | SHARED

    def repeatable(self, m: int, n: int) -> bool:
        """Return whether the inner slot is."""
        return self.inner.repeatable(m, n)

    def invariants(self, m: int, n: int) -> Invariants:
        """Return that columns sum to zero."""
        return usual_limits(Invariant.CENTRED)

    def degree(self, m: int, n: int) -> float:
        """Return the inner slot's."""
        return self.inner.degree(m, n)

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return the inner slot's, where centring changes it by a known factor.

        A slot that only rescales keeps the centred input of the slot before it centred. A polar
        factor loses one of m directions of rows where its rows span all of them.
        """
        rms = self.inner.output_rms(m, n, incoming)
        if self.inner.only_rescales(m, n):
            return rms
        if Invariant.ISOMETRY not in self.inner.invariants(m, n):
            return None
        return rms if rms is None or m > n else rms * (1 - 1 / m) ** 0.5

    def moves(self, m: int, n: int) -> bool:
        """Return whether the inner slot moves at once."""
        return self.inner.moves(m, n)


def centred(rule: UpdateRule) -> UpdateRule:
    """The rule with each of its slots between two projections; for untied heads and routers."""
    return each_slot(rule, Centred, name=f"centred_{rule.name}")
