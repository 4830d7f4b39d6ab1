"""Freon: the momentum with its singular values raised to a power, by default a negative one.

    U = (M M')^(-c) M = sum_i sigma_i^(1 - 2 c) u_i v_i',   W <- (1 - lr wd) W - lr s U

c = 0 is gradient descent, 1/2 Muon, and c in between steepest descent in a Schatten norm; beyond
1/2, where the best exponents were found, weak directions get the larger steps and no norm explains
it. The size of U is chosen apart, with q = 2 (1 - c) = p + 1:

    SumNorm    sigma_i^p (sum_j sigma_j^q)^(-p/q)      MeanNorm    the mean over j instead
    PolarSize  U at the Frobenius norm of a polar factor (default: learning rates carry over)
    OwnSize    sigma_i^p itself, of degree p in M

Source: (2026), arXiv 2605.11181, by its abstract and descriptions at second hand.
Deviations: powers by optimal rational steps (`linalg/spectral_power.py`) or exactly; singular
values below 1e-3 of |M|_F are damped, not enlarged.
"""

from dataclasses import dataclass
from typing import Protocol, Unpack

from torch import Tensor

from polarlight.linalg.matrices import at_least_float32, frobenius_norm, nonzero, unit_scale
from polarlight.linalg.properties import POWERS, ROTATIONS, Invariant, Invariants, Symmetries
from polarlight.linalg.slot import MatrixMap, polar_rms
from polarlight.linalg.spectral_power import RationalPower, SpectralPower
from polarlight.registry import registered
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.rules.with_adamw import Shared, WithAdamW
from polarlight.stages.momentum import EMA
from polarlight.stages.renormalise import PolarNorm
from polarlight.stages.scales import Original


class Size(Protocol):
    """How large a power is made."""

    def __call__(self, M: Tensor, U: Tensor, p: float) -> Tensor:
        """U, the power p of M / |M|_F, rescaled as a whole."""


@registered("SumNorm")
@dataclass(frozen=True, slots=True)
class SumNorm:
    """M is first divided by its Schatten quasi-norm (sum sigma^q)^(1/q); needs p > -1."""

    def __call__(self, M: Tensor, U: Tensor, p: float) -> Tensor:
        """U times (sum sigma^q)^(-p/q): the sum is <M / |M|_F, U>."""
        return U * _pairing(M, U) ** _dual(p)


@registered("MeanNorm")
@dataclass(frozen=True, slots=True)
class MeanNorm:
    """As `SumNorm` with the mean over the min(m, n) singular values: the same for all shapes."""

    def __call__(self, M: Tensor, U: Tensor, p: float) -> Tensor:
        """U times (mean sigma^q)^(-p/q)."""
        return U * (_pairing(M, U) / min(M.shape[-2:])) ** _dual(p)


@registered("PolarSize")
@dataclass(frozen=True, slots=True)
class PolarSize:
    """The Frobenius norm of a polar factor, sqrt(min(m, n)), whatever the rank of M is."""

    def __call__(self, M: Tensor, U: Tensor, p: float) -> Tensor:
        """U at that norm."""
        return PolarNorm()(U)


@registered("OwnSize")
@dataclass(frozen=True, slots=True)
class OwnSize:
    """The power of M itself, homogeneous of degree p: the only size that depends on |M|."""

    def __call__(self, M: Tensor, U: Tensor, p: float) -> Tensor:
        """U times |M|_F^p."""
        largest = at_least_float32(M).abs().amax(dim=(-2, -1), keepdim=True)
        return U * nonzero(largest * frobenius_norm(unit_scale(M))) ** p


@registered("SizedPower")
@dataclass(frozen=True, slots=True)
class SizedPower(MatrixMap):
    """A power of the singular values at the given size, [..., m, n] -> [..., m, n]."""

    power: SpectralPower
    size: Size

    def __post_init__(self) -> None:
        if isinstance(self.size, SumNorm | MeanNorm):
            _dual(self.power.exponent)

    def __call__(self, M: Tensor) -> Tensor:
        """The power, at its size."""
        X = at_least_float32(M)
        return self.size(X, self.power(X), self.power.exponent).to(M.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the declared symmetries."""
        return ROTATIONS

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the declared invariants."""
        return {Invariant.SPECTRAL: POWERS}

    def degree(self, m: int, n: int) -> float:
        """Return the exponent where the size follows the input's."""
        return self.power.exponent if isinstance(self.size, OwnSize) else 0.0

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return the root mean square entry; see `Slot`."""
        return polar_rms(m, n) if isinstance(self.size, PolarSize) else None

    def __str__(self) -> str:
        return str(self.power)


def _dual(p: float) -> float:
    if not p > -1:
        raise ValueError(f"a Schatten norm of the power needs p > -1, got p = {p}")
    return -p / (1 + p)


def _pairing(M: Tensor, U: Tensor) -> Tensor:
    """<M / |M|_F, U>, [..., 1, 1]; 1 for a zero matrix."""
    X = unit_scale(M)
    return nonzero((X / nonzero(frobenius_norm(X)) * U).sum(dim=(-2, -1), keepdim=True))


@registered_rule(lr=0.02, about="singular values to a negative power")
def freon(
    power: SpectralPower = RationalPower(6, 4),
    *,
    size: Size = PolarSize(),
    nesterov: bool = True,
    scale: Scale = Original(),
) -> UpdateRule:
    """Freon; c = a/b for `RationalPower(b, a)`, c = (1 - p)/2 for `ExactPower(p)`."""
    direction = SizedPower(power, size)
    return UpdateRule(name="freon", momentum=EMA(nesterov), map=direction, scale=scale)


class Freon(WithAdamW):
    """Freon on hidden matrices, AdamW on the rest.

    Args:
        params: A module or `model.named_parameters()`, routed by role; matrices; or param groups.
        lr: Learning rate of the matrices.
        weight_decay: Decoupled weight decay of the matrices.
        momentum: Decay of the momentum, in [0, 1).
        nesterov: Look one step ahead.
        power: `RationalPower(b, a)` for c = a/b, 2/3 by default, or `ExactPower(1 - 2 * c)`.
        size: `PolarSize()` (the default), `MeanNorm()`, `SumNorm()` or `OwnSize()`.
        scale: Factor from (fan_out, fan_in), `Original()` by default; `MatchRmsAdamW()` lets
            AdamW's learning rates carry over.
        **shared: `maximize`, `executor`, `nonfinite`, `view`, `overrides`, `aux_lr`, `aux_betas`,
            `aux_weight_decay`; see `polarlight.rules.Shared`.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> power = polarlight.linalg.ExactPower(-0.5)
        >>> optimizer = polarlight.Freon(model, lr=0.02, power=power)
        >>> [group['rule'].name for group in optimizer.param_groups]
        ['freon', 'adamw']
    """

    def __init__(
        self,
        params: object,
        lr: float | Tensor = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        *,
        power: SpectralPower = RationalPower(6, 4),
        size: Size = PolarSize(),
        scale: Scale = Original(),
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(
            params,
            lr,
            weight_decay,
            momentum,
            rule=freon(power, size=size, nesterov=nesterov, scale=scale),
            **shared,
        )
