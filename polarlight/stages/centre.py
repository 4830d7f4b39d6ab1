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
from polarlight.linalg.row_sums import HERE, Rows, over_rows
from polarlight.registry import registered
from polarlight.rule import Buffers, ByShape, Slot, UpdateRule, apply_on_rows, buffer_shapes
from polarlight.stages.orientation import each_slot


def without_mean_row(X: Tensor, rows: Rows = HERE) -> Tensor:
    """X with the mean of its rows subtracted from each, [..., m, n] -> [..., m, n]."""
    wide = at_least_float32(X)
    if rows is HERE:
        return (wide - wide.mean(dim=-2, keepdim=True)).to(X.dtype)
    mean = over_rows(wide, rows) / rows.count(X)
    return (wide - mean).to(X.dtype)


@registered("Centred")
@dataclass(frozen=True, slots=True)
class Centred:
    """A slot between two projections, P f(P M), [..., m, n] -> [..., m, n].

    The columns of the result sum to zero. A single row has nothing left: it maps to zero.
    """

    inner: Slot

    def chosen(self, m: int, n: int) -> Slot:
        """What the inner slot comes to at this shape."""
        return self.inner.chosen(m, n) if isinstance(self.inner, ByShape) else self.inner

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Those of the inner slot."""
        return buffer_shapes(self.inner, shape)

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """The centred result of the centred matrix."""
        return self.on_rows(X, HERE, buffers)

    def on_rows(self, X: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
        """The same for a part of the rows, if the inner slot can."""
        mapped = apply_on_rows(self.inner, without_mean_row(X, rows), rows, buffers)
        return without_mean_row(mapped, rows)


def centred(rule: UpdateRule) -> UpdateRule:
    """The rule with each of its slots between two projections; for untied heads and routers."""
    return each_slot(rule, Centred, name=f"centred_{rule.name}")
