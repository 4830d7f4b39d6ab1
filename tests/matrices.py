"""Inputs shared by the tests: deterministic, generic, and skewed like momentum."""

import torch
from torch import Tensor

TALL, WIDE, SQUARE = (24, 6), (6, 24), (8, 8)
SHAPES = (TALL, WIDE, SQUARE)
SEEDS = 10


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Independent normal entries, drawn in float64, so that every dtype sees the same matrix."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def skewed(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """diag(r) A diag(s) as [..., m, n]: lognormal r, Gaussian A, and s_j = 1 / j, a power law."""
    *batch, m, n = shape
    r = gaussian(*batch, m, 1, seed=seed + 1000).exp()
    s = 1 / torch.arange(1, n + 1, dtype=torch.float64)
    return (r * gaussian(*shape, seed=seed) * s).to(dtype)


def many_skewed(*shape: int) -> Tensor:
    """Ten skewed matrices, [10, m, n], for statements about the worst of ten seeds."""
    return torch.stack([skewed(*shape, seed=seed) for seed in range(SEEDS)])
