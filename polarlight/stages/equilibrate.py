"""Rows or columns brought to equal norm before the map; and a switch between two such stages."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from polarlight.linalg.matrices import unit_scale
from polarlight.linalg.properties import (
    LEFT,
    NO_INVARIANTS,
    RIGHT_SIGNED,
    ROWS,
    SIGNED,
    Invariant,
    Invariants,
    Symmetries,
    Symmetry,
    usual_limits,
)
from polarlight.linalg.row_sums import ALL_ROWS, Rows
from polarlight.linalg.rows import inverse_row_norms
from polarlight.linalg.slot import Buffers, MatrixMap, Stage
from polarlight.registry import registered

RELATIVE_FLOOR = 1e-4
"""Rows below this fraction of the rms row norm are noise: they are not lifted to a full row."""


@registered("EquilibrateRows")
@dataclass(frozen=True, slots=True)
class EquilibrateRows(MatrixMap):
    """Each row divided by its Euclidean norm, [..., m, n] -> [..., m, n]; zero rows stay zero."""

    floor: float = RELATIVE_FLOOR

    def __call__(self, M: Tensor) -> Tensor:
        """The equilibrated matrix."""
        return self._on_rows(M, ALL_ROWS)

    def _on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        """Return those rows of the image."""
        scaled = unit_scale(X, rows)
        return (scaled * inverse_row_norms(scaled, self.floor, rows)).to(X.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the declared symmetries."""
        return ROWS | {Symmetry.ROW_RESCALING}

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the declared invariants."""
        return usual_limits(Invariant.EQUAL_ROWS)

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return the root mean square entry; see `Slot`."""
        return 1 / sqrt(n)


@registered("EquilibrateColumns")
@dataclass(frozen=True, slots=True)
class EquilibrateColumns(MatrixMap):
    """Each column divided by its Euclidean norm, [..., m, n] -> [..., m, n]; zero stays zero."""

    floor: float = RELATIVE_FLOOR

    def __call__(self, M: Tensor) -> Tensor:
        """The equilibrated matrix."""
        return EquilibrateRows(self.floor)(M.mT).mT

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the declared symmetries."""
        return LEFT | RIGHT_SIGNED | {Symmetry.COLUMN_RESCALING}

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the declared invariants."""
        return usual_limits(Invariant.EQUAL_COLUMNS)

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return the root mean square entry; see `Slot`."""
        return 1 / sqrt(m)


@registered("EquilibrateBoth")
@dataclass(frozen=True, slots=True)
class EquilibrateBoth(MatrixMap):
    """Rows and columns divided by the norms they had at the start: one parallel pass, not Sinkhorn.

    Shapes: [..., m, n] -> [..., m, n]; zero rows and columns stay zero.
    """

    floor: float = RELATIVE_FLOOR

    def __call__(self, M: Tensor) -> Tensor:
        """The equilibrated matrix."""
        X = unit_scale(M)
        rows, columns = inverse_row_norms(X, self.floor), inverse_row_norms(X.mT, self.floor).mT
        return unit_scale(X * rows * columns).to(M.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the declared symmetries."""
        return SIGNED

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the declared invariants."""
        return NO_INVARIANTS


@registered("PhaseSwitch", stateful=True, may_differ=("first", "then", "steps"))
@dataclass(frozen=True, slots=True)
class PhaseSwitch(Stage):
    """`first` for the first `steps` steps of each parameter, `then` from there on.

    Shapes: [..., m, n] -> [..., m, n]. State: `steps_done` [..., 1, 1]. Both maps are computed and
    one is chosen on the device, so that no step waits for the host; meant for cheap maps.
    """

    first: MatrixMap
    then: MatrixMap
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must be >= 0, got {self.steps}")

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """One counter per matrix."""
        return {"steps_done": torch.Size((*shape[:-2], 1, 1))}

    def __call__(self, M: Tensor, buffers: Buffers) -> Tensor:
        """The phase's map; counts the step."""
        done = buffers["steps_done"]
        result = torch.where(done < self.steps, self.first(M), self.then(M))
        done.add_(1)
        return result

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the declared symmetries."""
        return self.first.symmetries(m, n) & self.then.symmetries(m, n)

    def invariants(self, m: int, n: int) -> Invariants:
        """Return what both phases keep, each at the wider limit."""
        first, then = self.first.invariants(m, n), self.then.invariants(m, n)
        return {name: max(first[name], then[name]) for name in first if name in then}
