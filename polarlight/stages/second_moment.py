"""Second moments of the update, per row or per entry, kept between steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.matrices import at_least_float32, nonzero
from polarlight.linalg.properties import (
    NO_INVARIANTS,
    ROWS,
    Invariant,
    Invariants,
    Symmetries,
    Symmetry,
    usual_limits,
)
from polarlight.linalg.row_sums import Rows
from polarlight.linalg.slot import Buffers, Entrywise, Stage
from polarlight.lookup import check_fraction
from polarlight.registry import registered


@registered("RowSecondMoment", stateful=True, may_differ=("beta2",))
@dataclass(frozen=True, slots=True)
class RowSecondMoment(Stage):
    """Each row divided by the root of a running mean of its squared entries.

        v <- beta2 v + (1 - beta2) mean_j X_ij^2,        X_i <- X_i / sqrt(v_i)

    Shapes: [..., m, n] -> [..., m, n]. State: `row_second_moment` [..., m, 1]. No bias correction:
    what follows fixes the overall size. A row whose v is zero is zero and stays zero, so no floor
    is needed; the papers add an absolute 1e-10 to the root.

    Source: Li et al., "NorMuon" (2025), arXiv 2510.05491.
    """

    beta2: float = 0.95

    def __post_init__(self) -> None:
        check_fraction("beta2", self.beta2)

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """One number per row."""
        return {"row_second_moment": torch.Size((*shape[:-1], 1))}

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Update the second moment and divide by its root."""
        return self._divided(X, at_least_float32(X).square().mean(dim=-1, keepdim=True), buffers)

    def _on_rows(self, X: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
        """Return those rows of the image: a row needs nothing of the others."""
        return self(X, buffers)

    def apply_on_columns(self, X: Tensor, columns: Rows, buffers: Buffers) -> Tensor:
        """Return those columns of the image; each holder of some has all of the second moment."""
        sums = columns.sum(at_least_float32(X).square().sum(dim=-1, keepdim=True))  # [..., m, 1]
        return self._divided(X, sums / columns.count(X.mT), buffers)

    def _divided(self, X: Tensor, mean_squares: Tensor, buffers: Buffers) -> Tensor:
        """Update the second moment by mean squares [..., m, 1]; divide X by its root."""
        v = buffers["row_second_moment"]
        v.lerp_(mean_squares.to(v.dtype), 1 - self.beta2)
        return (X / nonzero(v.sqrt())).to(X.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the declared symmetries."""
        return ROWS | {Symmetry.ROW_RESCALING}

    def rescales_rows(self, m: int, n: int) -> bool:
        """Return True."""
        return True

    def invariants(self, m: int, n: int) -> Invariants:
        """Return equal rows where nothing is remembered; else they are equal only on average."""
        return NO_INVARIANTS if self.beta2 else usual_limits(Invariant.EQUAL_ROWS)

    def __str__(self) -> str:
        return f"row second moment {self.beta2:g}"


@registered("EntrySecondMoment", stateful=True, may_differ=("beta2",))
@dataclass(frozen=True, slots=True)
class EntrySecondMoment(Entrywise, Stage):
    """Each entry divided by the root of a running mean of its square.

        v <- beta2 v + (1 - beta2) X o X,        X <- X / sqrt(v)

    Shapes: [..., m, n] -> [..., m, n]. State: `entry_second_moment` [..., m, n]. No bias
    correction: what follows fixes the overall size.

    Args:
        beta2: Decay rate, in [0, 1).
        floor: Least root, as a fraction of its root mean square.
    """

    beta2: float = 0.95
    floor: float = 1e-8

    def __post_init__(self) -> None:
        check_fraction("beta2", self.beta2)
        if not self.floor >= 0:
            raise ValueError(f"floor must be >= 0, got {self.floor}")

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """One number per entry."""
        return {"entry_second_moment": shape}

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Update the second moment and divide by its root."""
        v = buffers["entry_second_moment"]
        v.lerp_(at_least_float32(X).square().to(v.dtype), 1 - self.beta2)
        least = self.floor * v.mean(dim=(-2, -1), keepdim=True).sqrt()
        return (X / nonzero(v.sqrt() + least)).to(X.dtype)

    def __str__(self) -> str:
        return f"entry second moment {self.beta2:g}"
