"""Inputs shared by the tests: deterministic, generic, and skewed like momentum."""

import torch
from torch import Tensor

TALL, WIDE, SQUARE = (24, 6), (6, 24), (8, 8)
SHAPES = (TALL, WIDE, SQUARE)
SEEDS = range(10)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Independent normal entries, drawn in float64 so that every dtype sees the same matrix."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def skewed(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """diag(r) A diag(s), [..., m, n]: r lognormal, A Gaussian, s_j = 1 / j a power-law spectrum."""
    *batch, m, n = shape
    rows = gaussian(*batch, m, 1, seed=seed + 1000).exp()
    spectrum = 1 / torch.arange(1, n + 1, dtype=torch.float64)
    return (rows * gaussian(*shape, seed=seed) * spectrum).to(dtype)
