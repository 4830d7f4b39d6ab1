"""PolarGrad: the polar factor, as long as the matrix's nuclear norm.

    momentum first:   M <- b M + (1 - b) G,  U = polar(M),   W <- (1 - lr wd) W - lr <M, U> U
    polar first:      U = polar(G),  P <- b P + (1 - b) U,   W <- (1 - lr wd) W - lr <G, U> P

<M, U> is the nuclear norm, the one that is dual to the spectral norm: steepest descent whose steps
vanish with the gradient, where Muon's keep their length and need a falling learning rate.

Source: Lau et al., "PolarGrad" (2025), arXiv 2505.21799, and its code (timlautk/polargrad).
Deviations: QDWH converges here (the code stops after two steps); a batch has a nuclear norm for
each matrix, not their sum. Not free of scale, by design: U(c M) = c^power U(M), so lr has the size
of the loss in it. In the form with the polar factor first the decay rate belongs to the rule.
"""

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from polarlight.linalg.matrices import at_least_float32, nonzero, unit_scale
from polarlight.linalg.properties import NO_INVARIANTS, ROTATIONS, Invariant, Invariants, Symmetries
from polarlight.linalg.qdwh import QDWH
from polarlight.linalg.slot import Buffers, MatrixMap, Stage, polar_rms
from polarlight.registry import registered
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.rules.with_adamw import Shared, WithAdamW
from polarlight.stages.factors import check_beta
from polarlight.stages.momentum import EMA, RawGradient
from polarlight.stages.scales import Unscaled


def nuclear_norm(M: Tensor, U: Tensor, power: float = 1.0) -> Tensor:
    """<M, U>^power of each matrix, [..., m, n] -> [..., 1, 1], U the polar factor; 0 for zero."""
    M, U = at_least_float32(M), at_least_float32(U)
    largest = M.abs().amax(dim=(-2, -1), keepdim=True)
    pairing = (unit_scale(M) * U).sum(dim=(-2, -1), keepdim=True)
    return torch.where(pairing == 0, 0.0, nonzero(pairing) ** power * largest**power)


@registered("NuclearPolar")
@dataclass(frozen=True, slots=True)
class NuclearPolar(MatrixMap):
    """<M, polar(M)>^power polar(M), [..., m, n] -> [..., m, n]; power 1 PolarGrad, 0 Muon."""

    polar: MatrixMap = QDWH()
    power: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.power <= 1:
            raise ValueError(f"power must lie in [0, 1], got {self.power}")

    def __call__(self, M: Tensor) -> Tensor:
        """The polar factor at its length."""
        U = self.polar(M)
        return (nuclear_norm(M, U, self.power) * U).to(M.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the declared symmetries."""
        return self.polar.symmetries(m, n) & ROTATIONS

    def iteration_dtype(
        self, m: int, n: int, dtype: torch.dtype, device: torch.device
    ) -> torch.dtype:
        """Return the dtype of the polar method."""
        return self.polar.iteration_dtype(m, n, dtype, device)

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the polar method's, but for the size."""
        polar = self.polar.invariants(m, n)
        return {name: limit for name, limit in polar.items() if name != Invariant.SIZE}

    def degree(self, m: int, n: int) -> float:
        """Return the power of the nuclear norm."""
        return self.power

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return the root mean square entry; see `Slot`."""
        return None if self.power else polar_rms(m, n)

    def __str__(self) -> str:
        return f"{self.polar}, nuclear norm"


@registered("AveragedPolar", stateful=True, may_differ=("polar", "beta"))
@dataclass(frozen=True, slots=True)
class AveragedPolar(Stage):
    """The average of past polar factors, times the nuclear norm of the present gradient.

    Shapes: [..., m, n] -> [..., m, n]. State: `polar_momentum` [..., m, n].
    """

    polar: MatrixMap = QDWH()
    beta: float = 0.95

    def __post_init__(self) -> None:
        check_beta(self.beta)

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """The average."""
        return {"polar_momentum": shape}

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Updates the average; returns it at its length."""
        U, P = self.polar(at_least_float32(X)), buffers["polar_momentum"]
        P.lerp_(U, 1 - self.beta)
        return (nuclear_norm(X, U) * P).to(X.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the declared symmetries."""
        return self.polar.symmetries(m, n) & ROTATIONS

    def iteration_dtype(
        self, m: int, n: int, dtype: torch.dtype, device: torch.device
    ) -> torch.dtype:
        """Return the dtype of the polar method."""
        return self.polar.iteration_dtype(m, n, dtype, device)

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the declared invariants."""
        return NO_INVARIANTS

    def degree(self, m: int, n: int) -> float:
        """Return 1: the nuclear norm of the gradient."""
        return 1.0

    def __str__(self) -> str:
        return f"{self.polar}, averaged, nuclear norm"


@registered_rule(lr=0.02, about="polar factor as long as the nuclear norm")
def polargrad(
    *,
    polar: MatrixMap = QDWH(),
    power: float = 1.0,
    nesterov: bool = False,
    scale: Scale = Unscaled(),
) -> UpdateRule:
    """PolarGrad with the momentum first, the source's default."""
    nuclear = NuclearPolar(polar, power)
    return UpdateRule(name="polargrad", momentum=EMA(nesterov), map=nuclear, scale=scale)


@registered_rule(lr=0.02, about="PolarGrad with averaged polar factors")
def polargrad_polar_first(
    *, beta: float = 0.95, polar: MatrixMap = QDWH(), scale: Scale = Unscaled()
) -> UpdateRule:
    """PolarGrad with the polar factor first; for `SpectralOptimizer(params, rule=...)`."""
    averaged = AveragedPolar(polar, beta)
    return UpdateRule(
        name="polargrad_polar_first", momentum=RawGradient(), map=averaged, scale=scale
    )


class PolarGrad(WithAdamW):
    """PolarGrad on hidden matrices, AdamW on the rest.

    Args:
        params: A module or `model.named_parameters()`, routed by role; matrices; or param groups.
        lr: Learning rate of the matrices; has the scale of the loss in it, as steps grow with the
            gradient.
        weight_decay: Decoupled weight decay of the matrices.
        momentum: Decay of the momentum, in [0, 1).
        nesterov: Look one step ahead.
        polar: The polar method, `QDWH()` by default; its error enters the length as well.
        power: Of the nuclear norm, in [0, 1]; 0 gives Muon.
        scale: Factor from (fan_out, fan_in), `Unscaled()` by default.
        **shared: `maximize`, `executor`, `nonfinite`, `view`, `overrides`, `aux_lr`, `aux_betas`,
            `aux_weight_decay`; see `polarlight.rules.Shared`.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.PolarGrad(model, lr=0.02, power=0.5)
        >>> [group['rule'].name for group in optimizer.param_groups]
        ['polargrad', 'adamw']
    """

    def __init__(
        self,
        params: object,
        lr: float | Tensor = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = False,
        *,
        polar: MatrixMap = QDWH(),
        power: float = 1.0,
        scale: Scale = Unscaled(),
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(
            params,
            lr,
            weight_decay,
            momentum,
            rule=polargrad(polar=polar, power=power, nesterov=nesterov, scale=scale),
            **shared,
        )
