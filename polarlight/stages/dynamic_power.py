"""A polar factor bent towards a power of the singular values, to second order in X X' - I."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.isolation import isolated
from polarlight.linalg.matrices import frobenius_norm, nonzero, unit_scale
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.precision import iteration_dtype
from polarlight.linalg.products import gram, times_short
from polarlight.linalg.properties import POWERS, ROTATIONS, Invariant, Invariants, Symmetries
from polarlight.linalg.slot import Buffers, MatrixMap, Stage
from polarlight.registry import registered
from polarlight.stages.ramp import Logistic, Moving, Number, counted, counter_shape
from polarlight.stages.statistics import norm_of_any_size


@registered("DynamicPower", stateful=True, may_differ=("power", "polar", "unit"))
@dataclass(frozen=True, slots=True)
class DynamicPower(Stage):
    """(I + d E + d (d - 1) / 2 E^2) polar(N),  X = N / |N|,  E = X X' - I,  d = power / 2.

    That is s^power near s = 1. |X| is 1, so that most singular values are far below, and come out
    near 1 - d + d (d - 1) / 2: it is a polar factor with the few largest ones bent.

    Shapes: [..., m, n] -> [..., m, n]. State: `power_calls` [..., 1, 1] if the power moves.

    Args:
        power: The power, 0 for the polar factor.
        polar: The polar method.
        unit: Multiply by (|N| / unit)^power as the paper does, so that the step depends on the
            scale of the gradients; None leaves the factor out.
    """

    power: Number = Logistic(0.25, -0.25, middle=128, width=128)
    polar: MatrixMap = NewtonSchulz()
    unit: float | None = None

    def __post_init__(self) -> None:
        if self.unit is not None and not self.unit > 0:
            raise ValueError(f"unit must be > 0, got {self.unit}")

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return the counter."""
        return counter_shape(self.power, "power_calls", shape)

    @isolated
    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Return the bent polar factor; counts the call."""
        p = counted(self.power, "power_calls", buffers)
        N = unit_scale(X)
        N = N / nonzero(frobenius_norm(N))
        narrow = iteration_dtype(N.dtype, N.device)
        E = gram(N.to(narrow))  # on the short side, [..., k, k]
        E = E - torch.eye(E.shape[-1], dtype=E.dtype, device=E.device)
        d = p / 2
        bend = (d * E + (d * (d - 1) / 2) * (E @ E)).to(narrow)
        U = times_short(self.polar(X).to(narrow), bend, 1.0).to(N.dtype)
        if self.unit is not None:
            U = U * nonzero(norm_of_any_size(X.to(N.dtype)) / self.unit) ** p
        return U.to(X.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return those of the polar method."""
        return self.polar.symmetries(m, n) & ROTATIONS

    def invariants(self, m: int, n: int) -> Invariants:
        """Return that the singular vectors are kept."""
        return {Invariant.SPECTRAL: POWERS}

    def degree(self, m: int, n: int) -> float:
        """Return the power where the size follows the input's; 0 for one that moves."""
        return 0.0 if self.unit is None or isinstance(self.power, Moving) else self.power

    def __str__(self) -> str:
        return f"{self.polar}, bent to power {self.power}"
