"""PSGD's Kronecker-factored preconditioner, fitted to the momentum by random probes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.isolation import isolated
from polarlight.linalg.matrices import frobenius_norm, largest_entry, nonzero
from polarlight.linalg.properties import Symmetries
from polarlight.linalg.rest import PER_MATRIX, SIZES, moving
from polarlight.linalg.slot import Buffers
from polarlight.lookup import check_fraction
from polarlight.registry import registered
from polarlight.stages.statistics import StatisticsStage, batch_shapes, in_units, keep_zero_lines

LEAST = 1e-24
"""Least mean fourth power of the first gradient."""


@registered("PsgdKron", stateful=True, may_differ=("beta", "rate", "noise"))
@dataclass(frozen=True, slots=True)
class PsgdKron(StatisticsStage):
    """Q_L' Q_L M Q_R' Q_R with triangular factors that whiten the momentum M.

        A = Q_L (M + noise |M| z) Q_R',   B = Q_L^-T v Q_R^-1,   v, z normal
        Q_L <- Q_L - (rate / l) triu(A A' - B B') Q_L,   l a norm of A A' + B B';  Q_R likewise

    Shapes: [..., m, n] -> [..., m, n]; the gradient comes from `RawGradient`. State: `unit`,
    `psgd_calls` [..., 1, 1], `first_moment` [..., m, n], `left_triangle` [..., m, m],
    `right_triangle` [..., n, n], `momentum_sizes`. Probes are a hash of the count and of an entry's
    place: no generator is used, and every matrix of a shape gets the same.

    Args:
        beta: Decay rate of the momentum, in [0, 1).
        rate: Step of the factors, in (0, 1].
        noise: Size of the noise on the momentum, over its norm.
    """

    beta: float = 0.95
    rate: float = 1.0
    noise: float = 2.0**-23

    def __post_init__(self) -> None:
        check_fraction("beta", self.beta)
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate must lie in (0, 1], got {self.rate}")
        if not self.noise >= 0:
            raise ValueError(f"noise must be >= 0, got {self.noise}")

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return momentum and its sizes, triangles, unit and counter."""
        *batch, m, n = shape
        sizes = {"unit": (1, 1), "psgd_calls": (1, 1), SIZES: PER_MATRIX, "first_moment": (m, n)}
        sizes |= {"left_triangle": (m, m), "right_triangle": (n, n)}
        return batch_shapes(batch, sizes)

    @isolated
    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Update momentum and factors; return the preconditioned momentum."""
        G, calls = in_units(X, buffers["unit"]), buffers["psgd_calls"]
        buffers["first_moment"].lerp_(G, 1 - self.beta)
        M = buffers["first_moment"] / (1 - self.beta ** (calls + 1))
        start = G.pow(4).mean(dim=(-2, -1), keepdim=True).clamp_min(LEAST) ** (-1 / 32)
        triangles = buffers["left_triangle"], buffers["right_triangle"]
        Q, R = (torch.where(calls == 0, start * _unit(T), T) for T in triangles)
        v, z = (probe(M, calls, salt) for salt in (0, 1))
        seen = M + self.noise * frobenius_norm(M) * z
        new = whitened(Q, R, seen, v, self.rate)
        some = frobenius_norm(M) > 0  # zero would let the factors grow without bound
        for T, old, fresh in zip(triangles, (Q, R), new, strict=True):
            T.copy_(torch.where(some, fresh, old))
        calls.add_(1)
        left, right = (T.mT @ T for T in triangles)
        D = keep_zero_lines(left @ M @ right, M)
        return (D * moving(largest_entry(M), buffers[SIZES])).to(X.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return none: probes do not turn with the gradient."""
        return frozenset()

    def __str__(self) -> str:
        return "PSGD, Kronecker factors"


def whitened(
    left: Tensor, right: Tensor, M: Tensor, v: Tensor, rate: float
) -> tuple[Tensor, Tensor]:
    """Return both factors after one step of the fit.

    Args:
        left: Upper triangular, [..., m, m].
        right: Upper triangular, [..., n, n].
        M: What is whitened, [..., m, n].
        v: Normal probe, [..., m, n].
        rate: Step of the factors.
    """
    balance = (largest_entry(right) / nonzero(largest_entry(left))).sqrt()
    left, right = left * balance, right / nonzero(balance)
    A = left @ M @ right.mT
    solved = torch.linalg.solve_triangular(left.mT, v, upper=False)
    B = torch.linalg.solve_triangular(right, solved, upper=True, left=False)
    common = nonzero(torch.maximum(largest_entry(A), largest_entry(B)))  # cancels in the step
    A, B = A / common, B / common
    pairs = ((left, A @ A.mT, B @ B.mT), (right, A.mT @ A, B.mT @ B))
    # At rate 1 and A far larger than B, the step of a 1 x 1 factor would be all of it.
    more = 1 + 8 * torch.finfo(M.dtype).eps
    new = [Q - rate * torch.triu(S - T) @ Q / nonzero(more * _norm(S + T)) for Q, S, T in pairs]
    return new[0], new[1]


def _norm(S: Tensor) -> Tensor:
    """Return a lower bound of the norm of S: power iterations from its longest column."""
    longest = S.norm(dim=-2, keepdim=True).argmax(dim=-1, keepdim=True)  # [..., 1, 1]
    x = S @ S.take_along_dim(longest, dim=-1)  # [..., k, 1]
    return frobenius_norm(S @ (x / nonzero(frobenius_norm(x))))


def _unit(T: Tensor) -> Tensor:
    return torch.eye(T.shape[-1], dtype=T.dtype, device=T.device)


def probe(M: Tensor, calls: Tensor, salt: int) -> Tensor:
    """Return normal numbers [..., m, n] by place, count [..., 1, 1] and salt."""
    m, n = M.shape[-2:]
    place = torch.arange(m * n, dtype=torch.int64, device=M.device).view(m, n)
    h = (place * 0x2C1B3C6D + (calls.to(torch.int64) * 2 + salt + 1) * 0x297A2D39) & 0xFFFFFFFF
    for _ in range(2):
        h = ((h ^ (h >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    uniform = ((h ^ (h >> 15)) >> 8).to(M.dtype) / 2**24
    normal: Tensor = torch.special.ndtri(uniform.clamp(2.0**-24, 1 - 2.0**-24))
    return normal
