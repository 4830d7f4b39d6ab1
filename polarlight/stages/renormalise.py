"""Overall size of an update, after a stage that changed it."""

from dataclasses import dataclass
from math import inf, sqrt

import torch
from torch import Tensor

from polarlight.linalg.matrices import frobenius_norm, nonzero
from polarlight.linalg.row_sums import HERE, Rows
from polarlight.registry import registered
from polarlight.rule import Buffers, Slot, apply_on_rows, buffer_shapes


@registered("KeepNorm")
@dataclass(frozen=True, slots=True)
class KeepNorm:
    """The inner slot's result, rescaled to the Frobenius norm of its input; zero stays zero."""

    inner: Slot

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Those of the inner slot."""
        return buffer_shapes(self.inner, shape)

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Applies the inner slot and restores the norm."""
        return self.on_rows(X, HERE, buffers)

    def on_rows(self, X: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
        """The same for a part of the rows."""
        Y = apply_on_rows(self.inner, X, rows, buffers)
        norm = frobenius_norm(X, rows)
        return (Y * (norm / nonzero(frobenius_norm(Y, rows)))).to(X.dtype)

    def __str__(self) -> str:
        return f"{self.inner}, norm kept"


@registered("MatchRms")
@dataclass(frozen=True, slots=True)
class MatchRms:
    """Each matrix rescaled to a root mean square entry of `rms`; zero stays zero."""

    rms: float = 0.2

    def __post_init__(self) -> None:
        if not self.rms > 0:
            raise ValueError(f"rms must be > 0, got {self.rms}")

    def __call__(self, X: Tensor) -> Tensor:
        """The rescaled matrix."""
        return self.on_rows(X, HERE)

    def on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        """The same for a part of the rows."""
        m, n = rows.count(X), X.shape[-1]
        norm = nonzero(frobenius_norm(X, rows))
        return (X * (self.rms * sqrt(m * n) / norm)).to(X.dtype)

    def __str__(self) -> str:
        return f"rms {self.rms:g}"


@registered("PolarNorm")
@dataclass(frozen=True, slots=True)
class PolarNorm:
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
        return self.on_rows(X, HERE)

    def on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        """The same for a part of the rows."""
        norm = nonzero(frobenius_norm(X, rows))
        rank = min(rows.count(X), X.shape[-1])
        return (X * (sqrt(rank) / norm).clamp_max(self.most)).to(X.dtype)

    def __str__(self) -> str:
        return "norm of a polar factor"
