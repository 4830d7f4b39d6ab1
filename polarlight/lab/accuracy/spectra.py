"""Error of an engine against the float64 singular value decomposition, on given spectra.

A case is a spectrum and a shape. The engine maps a matrix with that spectrum; its output is then
read in the singular basis of the input, where an exact polar factor is the identity.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from polarlight.linalg.band import Band
from polarlight.linalg.cost import counted

THRESHOLDS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Bands are told for singular values above these fractions of the Frobenius norm."""


class Engine(Protocol):
    """Polar method: a callable from a matrix to its polar factor."""

    def __call__(self, M: Tensor, /) -> Tensor:
        """Return the polar factor of M, [..., m, n] -> [..., m, n]."""

    def band(self, m: int, n: int, dtype: torch.dtype, device: torch.device, /) -> Band:
        """Return the singular values that come out of m x n matrices of `dtype`."""


def _logspace(condition: float) -> Callable[[int], Tensor]:
    """Return a spectrum that is even on a logarithmic scale, from 1 to 1 / condition."""
    return lambda k: torch.logspace(0, -torch.tensor(condition).log10().item(), k).double()


def _first(rank: int) -> Callable[[int], Tensor]:
    """Return a spectrum of `rank` ones and zeros after them."""
    return lambda k: (torch.arange(k) < min(rank, k)).double()


SPECTRA: Mapping[str, Callable[[int], Tensor]] = {
    "flat": lambda k: torch.ones(k, dtype=torch.float64),
    "power law": lambda k: torch.arange(1, k + 1, dtype=torch.float64) ** -1.0,
    **{f"condition 1e{p}": _logspace(10.0**p) for p in (2, 3, 4, 5, 6, 7)},
    "half rank": lambda k: (torch.arange(k) < max(1, k // 2)).double(),
    "rank 1": _first(1),
}
"""Singular values by name, before scaling, for a matrix with k of them."""


@dataclass(frozen=True, slots=True)
class Case:
    """Matrix to map: name of its spectrum, its shape, and whether its first row is zero."""

    spectrum: str
    shape: tuple[int, int]
    zero_row: bool = False

    def matrix(self, seed: int = 0) -> Tensor:
        """Build the matrix, float64, [m, n], with random singular vectors from the seed."""
        m, n = self.shape
        k = min(m, n)
        generator = torch.Generator().manual_seed(seed)
        left, right = (
            torch.linalg.qr(torch.randn(size, k, dtype=torch.float64, generator=generator))[0]
            for size in (m, n)
        )
        M: Tensor = left * SPECTRA[self.spectrum](k) @ right.mT
        if self.zero_row:
            M[0] = 0
        return M

    @property
    def rank(self) -> int:
        """Number of nonzero singular values; a zero row may lower it."""
        sigma = torch.linalg.svdvals(self.matrix())
        return int((sigma > 1e-12 * sigma[0]).sum())

    def __str__(self) -> str:
        return self.spectrum + (", one zero row" if self.zero_row else "")


class Sample(NamedTuple):
    """Matrix for an engine, with its float64 decomposition.

    Attributes:
        M: The input in the dtype it is to be given in, [m, n].
        rank: Its rank before it was rounded to that dtype; what rounding adds is not to be mapped.
        U: Left singular vectors, [m, k].
        S: Singular values, [k].
        Vh: Right singular vectors, [k, n].
    """

    M: Tensor
    rank: int
    U: Tensor
    S: Tensor
    Vh: Tensor

    @classmethod
    def of(cls, M: Tensor, rank: int) -> "Sample":
        """Decompose M."""
        return cls(M, rank, *torch.linalg.svd(M.double(), full_matrices=False))


def measure(engine: Engine, sample: Sample) -> dict[str, Any]:
    """Measure the output of an engine for a sample, as JSON types.

    Returns:
        `bands`: least and greatest output singular value (diagonal in the input's basis) for inputs
        above each threshold, None where there is none. `orthogonality`: |X'X - projection|_F on
        the short side. `direction`: Frobenius norm of the part off that diagonal. `error`: |X -
        polar(M)|_F. The last three over sqrt(rank). `flops`, counted as it runs.
    """
    M, rank, U, S, Vh = sample
    relative = S / S.norm()
    kept = (torch.arange(len(S)) < rank).double()
    X = engine(M).double()
    diagonal = (U.mT @ X @ Vh.mT).diagonal()
    basis, gram = (Vh.mT, X.mT @ X) if M.shape[0] >= M.shape[1] else (U, X @ X.mT)
    return {
        "bands": {f"{t:g}": _band(diagonal[(relative >= t) & (kept > 0)]) for t in THRESHOLDS},
        "orthogonality": ((gram - basis * kept @ basis.mT).norm() / sqrt(rank)).item(),
        "direction": ((X - U * diagonal @ Vh).norm() / sqrt(rank)).item(),
        "error": ((X - U * kept @ Vh).norm() / sqrt(rank)).item(),
        "flops": counted(lambda: engine(M), M.shape[0], M.shape[1]).flops,
    }


def _band(values: Tensor) -> list[float] | None:
    """Return the least and the greatest value, None for no values."""
    return [values.min().item(), values.max().item()] if values.numel() else None
