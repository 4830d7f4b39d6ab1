"""Rows or columns brought to equal norm before the map; and a switch between two such stages."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.matrices import unit_scale
from polarlight.linalg.row_sums import HERE, Rows
from polarlight.linalg.rows import inverse_row_norms
from polarlight.registry import registered
from polarlight.rule import Buffers, MatrixMap

RELATIVE_FLOOR = 1e-4
"""Rows below this fraction of the rms row norm are noise: they are not lifted to a full row."""


@registered("EquilibrateRows")
@dataclass(frozen=True, slots=True)
class EquilibrateRows:
    """Each row divided by its Euclidean norm, [..., m, n] -> [..., m, n]; zero rows stay zero."""

    floor: float = RELATIVE_FLOOR

    def __call__(self, M: Tensor) -> Tensor:
        """The equilibrated matrix."""
        return self.on_rows(M, HERE)

    def on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        """The same for a part of the rows."""
        scaled = unit_scale(X, rows)
        return (scaled * inverse_row_norms(scaled, self.floor, rows)).to(X.dtype)


@registered("EquilibrateColumns")
@dataclass(frozen=True, slots=True)
class EquilibrateColumns:
    """Each column divided by its Euclidean norm, [..., m, n] -> [..., m, n]; zero stays zero."""

    floor: float = RELATIVE_FLOOR

    def __call__(self, M: Tensor) -> Tensor:
        """The equilibrated matrix."""
        return EquilibrateRows(self.floor)(M.mT).mT


@registered("EquilibrateBoth")
@dataclass(frozen=True, slots=True)
class EquilibrateBoth:
    """Rows and columns divided by the norms they had at the start: one parallel pass, not Sinkhorn.

    Shapes: [..., m, n] -> [..., m, n]; zero rows and columns stay zero.
    """

    floor: float = RELATIVE_FLOOR

    def __call__(self, M: Tensor) -> Tensor:
        """The equilibrated matrix."""
        X = unit_scale(M)
        rows, columns = inverse_row_norms(X, self.floor), inverse_row_norms(X.mT, self.floor).mT
        return unit_scale(X * rows * columns).to(M.dtype)


@registered("PhaseSwitch", stateful=True, may_differ=("first", "then", "steps"))
@dataclass(frozen=True, slots=True)
class PhaseSwitch:
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
