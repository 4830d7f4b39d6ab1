"""PMuon's preconditioner: powers of decaying sums of the momentum's Gram matrices."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polarlight.linalg.isolation import isolated
from polarlight.linalg.matrices import nonzero
from polarlight.linalg.properties import Symmetries
from polarlight.linalg.slot import GRADIENT, Buffers
from polarlight.lookup import check_fraction
from polarlight.registry import registered
from polarlight.rule import HOST_COUNTER
from polarlight.stages.eigenbasis import PowerIteration
from polarlight.stages.factors import SIDES
from polarlight.stages.rotated_adam import (
    BatchBuffers,
    Due,
    as_batch,
    basis_symmetries,
    do_due,
    start_bases,
)
from polarlight.stages.statistics import StatisticsStage, batch_shapes, in_units, keep_zero_lines


@registered("MomentumPower", stateful=True, may_differ=("beta", "exponent", "refresh", "floor"))
@dataclass(frozen=True, slots=True)
class MomentumPower(StatisticsStage):
    """E^exponent N C^exponent with sums of N N' and N' N, the newest counted 1 + beta times.

        C <- beta C + N'N,   C~ = N'N + beta C;   E likewise with N N'

    Shapes: [..., m, n] -> [..., m, n]. State: `unit` [..., 1, 1], `left_factor` and `left_basis`
    [..., m, m], `right_factor` and `right_basis` [..., n, n], `step` on the host. The bases start
    as singular vectors of the first momentum and take one QR step per call.

    Args:
        beta: Decay rate of the sums, in [0, 1).
        exponent: Power of each sum, in [-1, 0].
        refresh: How the bases follow the sums.
        floor: Shift and least eigenvalue, as a fraction of a sum's mean eigenvalue.
        due: What the bases need in this call; None asks the counter. Set by `at_step`.
    """

    beta: float = 0.95
    exponent: float = -0.3
    refresh: PowerIteration = PowerIteration(sort=False)
    floor: float = 1e-6
    due: Due | None = None

    def __post_init__(self) -> None:
        check_fraction("beta", self.beta)
        if not -1 <= self.exponent <= 0:
            raise ValueError(f"exponent must lie in [-1, 0], got {self.exponent}")
        if not self.floor > 0:
            raise ValueError(f"floor must be > 0, got {self.floor}")

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return the sums, their bases, the unit and the counter."""
        *batch, m, n = shape
        sizes = {HOST_COUNTER: (1, 1), "unit": (1, 1)}
        for side, length in zip(SIDES, (m, n), strict=True):
            sizes |= {f"{side}_{kept}": (length, length) for kept in ("factor", "basis")}
        return batch_shapes(batch, sizes)

    @isolated
    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Update sums and bases; return the preconditioned momentum."""
        members = {name: as_batch(buffer) for name, buffer in buffers.items()}
        step = members.pop(HOST_COUNTER)
        N = in_units(X.reshape(-1, *X.shape[-2:]), members["unit"])  # [b, m, n]
        members[GRADIENT] = N
        do_due(self.due, step, members, start=start_bases)
        step.add_(1)
        left = self._power(N, "left", members)
        right = self._power(N.mT, "right", members)
        return keep_zero_lines(left @ N @ right, N).reshape(X.shape).to(X.dtype)

    def at_step(self, t: int) -> "MomentumPower":
        """Return the stage that starts its bases at count 0, and nowhere else."""
        return replace(self, due=Due.NOTHING if t else Due.START)

    def _power(self, N: Tensor, side: str, members: BatchBuffers) -> Tensor:
        """Return the power [b, k, k] of one side's sum, in its basis."""
        S, Q, product = members[f"{side}_factor"], members[f"{side}_basis"], N @ N.mT
        S.mul_(self.beta).add_(product)
        seen = product + self.beta * S
        mean = nonzero(seen.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None])
        seen = seen / mean + self.floor * torch.eye(N.shape[-2], dtype=N.dtype, device=N.device)
        Q.copy_(self.refresh(seen, Q)[0])
        eigenvalues = (Q * (seen @ Q)).sum(dim=-2, keepdim=True).clamp_min(self.floor)
        return (Q * eigenvalues**self.exponent) @ Q.mT

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return rotations, as far as the bases turn with the momentum."""
        return basis_symmetries(m, n)

    def __str__(self) -> str:
        return f"power {self.exponent:g} of both Gram sums of the momentum"
