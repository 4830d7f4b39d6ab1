"""Powers of the singular values, and the sizes that they can be brought to."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from polarlight.linalg.matrices import at_least_float32, frobenius_norm, nonzero, unit_scale
from polarlight.linalg.slot import MatrixMap, SpectralFunction, polar_rms
from polarlight.linalg.spectral_power import SpectralPower
from polarlight.registry import registered
from polarlight.stages.renormalise import PolarNorm


class Size(Protocol):
    """Norm to which a power is scaled."""

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
    """Mean of the min(m, n) singular values: `SumNorm` over their number."""

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
class SizedPower(SpectralFunction, MatrixMap):
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
