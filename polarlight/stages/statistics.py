"""Shared by stages that keep statistics of gradients: units, buffers, lines without a gradient."""

from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor

from polarlight.linalg.matrices import (
    at_least_float32,
    frobenius_norm,
    nonzero,
    unit_scale,
    wide,
)
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
    moves = X != 0
    return D * moves.any(dim=-1, keepdim=True) * moves.any(dim=-2, keepdim=True)


def in_units(G: Tensor, unit: Tensor) -> Tensor:
    """G [..., m, n] divided by `unit` [..., 1, 1], in float32 or float64.

    The unit is the root mean square entry of the first gradient that is not zero; that gradient
    writes it, and it stays. So moments and factors of any gradients are of the same moderate size,
    and float32 holds the square of a gradient of 1e-30.
    """
    X = at_least_float32(G)
    m, n = X.shape[-2:]
    unit.copy_(torch.where(unit == 0, norm_of_any_size(X) / sqrt(m * n), unit))
    return X / nonzero(unit)


def norm_of_any_size(X: Tensor) -> Tensor:
    """Return Frobenius norms, [..., m, n] -> [..., 1, 1]; squares neither over- nor underflow."""
    largest = X.abs().amax(dim=(-2, -1), keepdim=True)
    return largest * frobenius_norm(unit_scale(X))
