"""Orientation: the units of a matrix are rows, columns, or pairs of rows.

A rule that treats rows alike serves columns and pairs as well once the matrix is laid out for it: a
down projection has a neuron per column, a fused gate and up projection one per pair of rows. An
orientation lays out the matrix and takes the result back; `oriented` gives a rule one, slot by
slot.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from polarlight.linalg.properties import (
    RIGHT,
    SHARED,
    Invariants,
    Symmetries,
    Symmetry,
    mirror_invariants,
    mirror_symmetries,
)
from polarlight.linalg.slot import GRADIENT, Buffers, Slot, Stage
from polarlight.registry import registered
from polarlight.rule import Scale, UpdateRule
from polarlight.stages.equilibrate import EquilibrateRows


class Orientation(Protocol):
    """Lays a matrix out so that its units are rows, and back; the two are inverse, bit for bit."""

    def shape(self, shape: torch.Size) -> torch.Size:
        """The shape of the layout of a matrix of this shape, [..., m, n] -> [..., p, q]."""

    def work(self, X: Tensor) -> Tensor:
        """[..., m, n] -> [..., p, q] with a unit per row."""

    def back(self, Y: Tensor) -> Tensor:
        """The inverse of `work`."""


@registered("Columns")
@dataclass(frozen=True, slots=True)
class Columns:
    """A unit per column: the neurons of a down projection."""

    def shape(self, shape: torch.Size) -> torch.Size:
        """[..., m, n] -> [..., n, m]."""
        return torch.Size((*shape[:-2], shape[-1], shape[-2]))

    def work(self, X: Tensor) -> Tensor:
        """The transpose, a view."""
        return X.mT

    def back(self, Y: Tensor) -> Tensor:
        """The transpose again."""
        return Y.mT

    def __str__(self) -> str:
        return "columns"


@registered("Pairs")
@dataclass(frozen=True, slots=True)
class Pairs:
    """A unit per pair of rows, [gate_j, up_j]: the neurons of a fused gate and up projection.

    The fused parameter must come as one matrix: `Route(view=Whole())`, or `Transposed()` where it
    is stored (fan_in, fan_out).

    Attributes:
        interleaved: Whether the two take turns, g0, u0, g1, u1, ...; else all gates come first.
    """

    interleaved: bool = False

    def shape(self, shape: torch.Size) -> torch.Size:
        """[..., 2 r, n] -> [..., r, 2 n]."""
        return torch.Size((*shape[:-2], shape[-2] // 2, 2 * shape[-1]))

    def work(self, X: Tensor) -> Tensor:
        """Each gate row beside its up row.

        Raises:
            ValueError: If the number of rows is odd.
        """
        if X.shape[-2] % 2:
            raise ValueError(f"{self} needs an even number of rows, got {X.shape[-2]}")
        return torch.cat(self._halves(X), dim=-1)

    def back(self, Y: Tensor) -> Tensor:
        """The rows where they were."""
        gate, up = Y.chunk(2, dim=-1)
        if self.interleaved:
            return torch.stack((gate, up), dim=-2).flatten(-3, -2)
        return torch.cat((gate, up), dim=-2)

    def _halves(self, X: Tensor) -> tuple[Tensor, ...]:
        if self.interleaved:
            return X[..., ::2, :], X[..., 1::2, :]
        return X.chunk(2, dim=-2)

    def __str__(self) -> str:
        return "pairs"


@registered("Oriented", lays_out=("orientation",))
@dataclass(frozen=True, slots=True)
class Oriented(Stage):
    """A slot applied to the layout of an orientation, [..., m, n] -> [..., m, n].

    Its buffers have the layout's shape.
    """

    orientation: Orientation
    inner: Slot

    def select(self, m: int, n: int) -> Slot:
        """Return the inner slot for the layout's shape."""
        p, q = self.orientation.shape(torch.Size((m, n)))
        return self.inner.select(p, q)

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return those of the inner slot for the layout; a gradient comes as the matrix does."""
        shapes = self.inner.buffer_shapes(self.orientation.shape(shape))
        return {**shapes, GRADIENT: shape} if GRADIENT in shapes else shapes

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """The inner slot's result, back in the matrix's own layout."""
        if GRADIENT in buffers:
            buffers = {**buffers, GRADIENT: self.orientation.work(buffers[GRADIENT])}
        return self.orientation.back(self.inner.apply(self.orientation.work(X), buffers))

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the inner slot's, as the matrix sees them.

        In pairs, rows alone are no units any more, and columns act on both halves alike. A map that
        takes nothing but lengths from its rows does not see the sign of half a row.
        """
        inner = self.inner.symmetries(*self._layout(m, n))
        if isinstance(self.orientation, Columns):
            return mirror_symmetries(inner)
        group = inner & (RIGHT | SHARED | {Symmetry.COLUMN_RESCALING})
        return group | {Symmetry.LEFT_SIGNS} if isinstance(self.inner, EquilibrateRows) else group

    def iteration_dtype(
        self, m: int, n: int, dtype: torch.dtype, device: torch.device
    ) -> torch.dtype:
        """Return the dtype of the inner slot."""
        return self.inner.iteration_dtype(*self._layout(m, n), dtype, device)

    def repeatable(self, m: int, n: int) -> bool:
        """Return whether the inner slot is."""
        return self.inner.repeatable(*self._layout(m, n))

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the inner slot's, as the matrix sees them."""
        inner = self.inner.invariants(*self._layout(m, n))
        return mirror_invariants(inner) if isinstance(self.orientation, Columns) else {}

    def degree(self, m: int, n: int) -> float:
        """Return the inner slot's."""
        return self.inner.degree(*self._layout(m, n))

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return the inner slot's: the layout has the same entries."""
        return self.inner.output_rms(*self._layout(m, n), incoming)

    def only_rescales(self, m: int, n: int) -> bool:
        """Return whether the slot that does the work only rescales."""
        return self.inner.only_rescales(*self._layout(m, n))

    def moves(self, m: int, n: int) -> bool:
        """Return whether the slot that does the work moves at once."""
        return self.inner.moves(*self._layout(m, n))

    def _layout(self, m: int, n: int) -> tuple[int, int]:
        """Return the shape of the layout of an m x n matrix."""
        p, q = self.orientation.shape(torch.Size((m, n)))
        return p, q


@registered("OrientedScale")
@dataclass(frozen=True, slots=True)
class OrientedScale:
    """The factor that a scale gives to the layout."""

    orientation: Orientation
    inner: Scale

    def __call__(self, fan_out: int, fan_in: int) -> float:
        """The inner scale at the layout's shape."""
        return self.inner(*self.orientation.shape(torch.Size((fan_out, fan_in))))


def oriented(rule: UpdateRule, orientation: Orientation) -> UpdateRule:
    """The rule with rows replaced by what the orientation calls units.

    `oriented(row_norm(), Columns())` brings columns to equal norm, as `row_norm()` would do with
    the transpose.
    """
    return each_slot(
        rule,
        lambda slot: Oriented(orientation, slot),
        name=f"{rule.name}_{orientation}",
        scale=OrientedScale(orientation, rule.scale),
    )


def each_slot(rule: UpdateRule, wrap: Callable[[Slot], Slot], **changes: object) -> UpdateRule:
    """The rule with every slot behind its momentum wrapped."""
    balance = None if rule.balance is None else wrap(rule.balance)
    post = tuple(wrap(slot) for slot in rule.post)
    wrapped = replace(rule, balance=balance, map=wrap(rule.map), post=post)
    return replace(wrapped, **changes)  # type: ignore[arg-type]
