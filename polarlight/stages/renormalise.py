"""Overall size of an update, after a stage that changed it."""

from dataclasses import dataclass
from math import inf, sqrt

import torch
from torch import Tensor

from polarlight.linalg.matrices import at_least_float32, frobenius_norm, nonzero
from polarlight.linalg.normalisation import FROBENIUS, Normalisation
from polarlight.linalg.properties import (
    SIZES_IGNORED,
    Invariants,
    Symmetries,
    Symmetry,
)
from polarlight.linalg.row_sums import ALL_ROWS, NeedsAllRowsError, Rows
from polarlight.linalg.slot import Buffers, Rescaling, Slot, Stage, polar_rms
from polarlight.registry import registered


@registered("KeepNorm")
@dataclass(frozen=True, slots=True)
class KeepNorm(Stage):
    """The inner slot's result, rescaled to a norm of its input; zero stays zero.

    Args:
        inner: The slot.
        norm: The norm that is kept, the Frobenius norm by default.
    """

    inner: Slot
    norm: Normalisation = FROBENIUS

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return those of the inner slot."""
        return self.inner.buffer_shapes(shape)

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Apply the inner slot and restores the norm."""
        return self._on_rows(X, ALL_ROWS, buffers)

    def _on_rows(self, X: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
        """Return those rows of the image."""
        Y = self.inner.apply_on_rows(X, rows, buffers)
        norm, own = (self.norm(Z, at_least_float32(Z).dtype, rows) for Z in (X, Y))
        return (Y * (norm / nonzero(own))).to(X.dtype)

    def apply_on_columns(self, X: Tensor, columns: Rows, buffers: Buffers) -> Tensor:
        """Return those columns of the image, if the norm is a number that transposes share."""
        if not self.norm.scalar:
            raise NeedsAllRowsError(f"{self.norm} is no number")
        Y = self.inner.apply_on_columns(X, columns, buffers)
        norm, own = (self.norm(Z.mT, at_least_float32(Z).dtype, columns) for Z in (X, Y))
        return (Y * (norm / nonzero(own))).to(X.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the inner slot's equivariances: sizes and shared parts of the input are kept."""
        return self.inner.symmetries(m, n) - SIZES_IGNORED - {Symmetry.SHARED_SHIFT}

    def repeatable(self, m: int, n: int) -> bool:
        """Return whether the inner slot is."""
        return self.inner.repeatable(m, n)

    def rescales_rows(self, m: int, n: int) -> bool:
        """Return whether the inner slot does."""
        return self.inner.rescales_rows(m, n)

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the inner slot's, which a factor on the whole does not change."""
        return self.inner.invariants(m, n)

    def degree(self, m: int, n: int) -> float:
        """Return 1: the scale of the input is kept."""
        return 1.0

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return the input's, where the Frobenius norm is kept."""
        return incoming if self.norm == FROBENIUS else None

    def moves(self, m: int, n: int) -> bool:
        """Return whether the inner slot moves at once."""
        return self.inner.moves(m, n)

    def __str__(self) -> str:
        return f"{self.inner}, norm kept"


@registered("MatchRms")
@dataclass(frozen=True, slots=True)
class MatchRms(Rescaling):
    """Each matrix rescaled to a root mean square entry of `rms`; zero stays zero."""

    rms: float = 0.2

    def __post_init__(self) -> None:
        if not self.rms > 0:
            raise ValueError(f"rms must be > 0, got {self.rms}")

    def __call__(self, X: Tensor) -> Tensor:
        """The rescaled matrix."""
        return self._on_rows(X, ALL_ROWS)

    def _on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        """Return those rows of the image."""
        m, n = rows.count(X), X.shape[-1]
        norm = nonzero(frobenius_norm(X, rows))
        return (X * (self.rms * sqrt(m * n) / norm)).to(X.dtype)

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return the root mean square entry; see `Slot`."""
        return self.rms

    def __str__(self) -> str:
        return f"rms {self.rms:g}"


@registered("PolarNorm")
@dataclass(frozen=True, slots=True)
class PolarNorm(Rescaling):
    """Each matrix rescaled to the Frobenius norm of a polar factor, sqrt(min(m, n)).

    Attributes:
        most: Largest factor; a matrix that would need more stays smaller. Bounds the step along one
            direction when the matrix has almost no others.
    """

    most: float = inf

    def __post_init__(self) -> None:
        if not self.most > 0:
            raise ValueError(f"most must be > 0, got {self.most}")

    def __call__(self, X: Tensor) -> Tensor:
        """The rescaled matrix; zero stays zero."""
        return self._on_rows(X, ALL_ROWS)

    def _on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        """Return those rows of the image."""
        norm = nonzero(frobenius_norm(X, rows))
        rank = min(rows.count(X), X.shape[-1])
        return (X * (sqrt(rank) / norm).clamp_max(self.most)).to(X.dtype)

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return the root mean square entry; see `Slot`."""
        return polar_rms(m, n)

    def __str__(self) -> str:
        return "norm of a polar factor"
