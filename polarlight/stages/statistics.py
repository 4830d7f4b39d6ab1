"""Shared by stages that keep statistics of the rows and columns of gradients."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polarlight.linalg.matrices import wide
from polarlight.linalg.properties import NO_INVARIANTS, Invariants
from polarlight.linalg.slot import Stage


class StatisticsStage(Stage):
    """Stage whose image depends on past gradients: no invariants, float32 or float64 inside."""

    __slots__ = ()

    def invariants(self, m: int, n: int) -> Invariants:
        """Return none: past gradients weigh directions at will."""
        return NO_INVARIANTS

    def iteration_dtype(
        self, m: int, n: int, dtype: torch.dtype, device: torch.device
    ) -> torch.dtype:
        """Return float32 at least: statistics are not narrower."""
        return wide(dtype)


def batch_shapes(
    batch: Sequence[int], sizes: Mapping[str, tuple[int, ...]]
) -> dict[str, torch.Size]:
    """Return the shapes [*batch, p, q] of buffers of sizes (p, q)."""
    return {name: torch.Size((*batch, *size)) for name, size in sizes.items()}


def keep_zero_lines(D: Tensor, X: Tensor) -> Tensor:
    """Return D [..., m, n] with zeros where a whole row or column of X is zero; bases mix them."""
    nonzero = X != 0
    return D * nonzero.any(dim=-1, keepdim=True) * nonzero.any(dim=-2, keepdim=True)
