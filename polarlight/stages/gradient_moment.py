"""The momentum in units of the gradient's root mean square, entry by entry."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.matrices import at_least_float32, nonzero
from polarlight.linalg.slot import GRADIENT, Buffers, Entrywise, Stage, gradient_of
from polarlight.lookup import check_fraction
from polarlight.registry import registered
from polarlight.stages.adam import check_eps
from polarlight.stages.statistics import in_units


@registered("GradientSecondMoment", stateful=True, may_differ=("beta2", "eps"))
@dataclass(frozen=True, slots=True)
class GradientSecondMoment(Entrywise, Stage):
    """N / (sqrt(V) + eps rms(sqrt(V))), V a running mean of the squared gradient.

        V <- beta2 V + (1 - beta2) G o G

    Shapes: [..., m, n] -> [..., m, n]. Reads the gradient. State: `unit` [..., 1, 1],
    `second_moment` [..., m, n]. No bias correction: what follows is free of the scale.

    Args:
        beta2: Decay rate of the second moment, in [0, 1).
        eps: Floor, as a fraction of the root mean square of the second moment's root.
    """

    beta2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_fraction("beta2", self.beta2)
        check_eps(self.eps)

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return the second moment, the unit it is kept in, and the gradient."""
        unit = torch.Size((*shape[:-2], 1, 1))
        return {"unit": unit, "second_moment": shape, GRADIENT: shape}

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Update the second moment; return the momentum over its root."""
        unit, V = buffers["unit"], buffers["second_moment"]
        V.lerp_(in_units(gradient_of(X, buffers), unit).square(), 1 - self.beta2)
        N = at_least_float32(X).to(V.dtype) / nonzero(unit)
        typical = V.mean(dim=(-2, -1), keepdim=True).sqrt()
        return (N / nonzero(V.sqrt() + self.eps * typical)).to(X.dtype)

    def __str__(self) -> str:
        return f"over the gradient's root mean square, {self.beta2:g}"
