"""Overall size of an update, after a stage that changed it."""

from dataclasses import dataclass
from math import inf, sqrt

import torch
from torch import Tensor

from polarlight.linalg.matrices import at_least_float32, frobenius_norm, nonzero
from polarlight.rule import Buffers, Slot, apply, buffer_shapes


@dataclass(frozen=True, slots=True)
class KeepNorm:
    """The inner slot's result, rescaled to the Frobenius norm of its input; zero stays zero."""

    inner: Slot

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Those of the inner slot."""
        return buffer_shapes(self.inner, shape)

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Applies the inner slot and restores the norm."""
        Y = apply(self.inner, X, buffers)
        factor = frobenius_norm(at_least_float32(X)) / nonzero(frobenius_norm(at_least_float32(Y)))
        return (Y * factor).to(X.dtype)

    def __str__(self) -> str:
        return f"{self.inner}, norm kept"


@dataclass(frozen=True, slots=True)
class MatchRms:
    """Each matrix rescaled to a root mean square entry of `rms`; zero stays zero."""

    rms: float = 0.2

    def __post_init__(self) -> None:
        if not self.rms > 0:
            raise ValueError(f"rms must be > 0, got {self.rms}")

    def __call__(self, X: Tensor) -> Tensor:
        """The rescaled matrix."""
        m, n = X.shape[-2:]
        norm = nonzero(frobenius_norm(at_least_float32(X)))
        return (X * (self.rms * sqrt(m * n) / norm)).to(X.dtype)

    def __str__(self) -> str:
        return f"rms {self.rms:g}"


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
        norm = nonzero(frobenius_norm(at_least_float32(X)))
        return (X * (sqrt(min(X.shape[-2:])) / norm).clamp_max(self.most)).to(X.dtype)

    def __str__(self) -> str:
        return "norm of a polar factor"
