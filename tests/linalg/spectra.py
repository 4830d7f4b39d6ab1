"""Matrices with known singular values and a known polar factor, for every engine's tests."""

from typing import NamedTuple

import torch
from torch import Tensor

from tests.matrices import gaussian

SPECTRA = ("flat", "power law", "1e2", "1e3", "1e4", "1e5", "1e6", "1e7", "half rank", "rank 1")
FULL_RANK = SPECTRA[:8]
SHAPES = ((48, 48), (60, 20), (20, 60), (3, 24, 16))


class Known(NamedTuple):
    """A float64 matrix, its singular values in descending order, its bases and polar factor."""

    M: Tensor
    sigma: Tensor
    left: Tensor
    right: Tensor
    polar: Tensor


def spectrum(name: str, k: int) -> Tensor:
    """k singular values, the largest 1; a number is a condition, on a logarithmic scale."""
    index = torch.arange(k, dtype=torch.float64)
    if name in ("flat", "half rank", "rank 1"):
        return (index < {"flat": k, "half rank": max(1, k // 2), "rank 1": 1}[name]).double()
    if name == "power law":
        return 1 / (index + 1)
    return float(name) ** (-index / max(1, k - 1))


def known(name: str, *shape: int, seed: int = 0) -> Known:
    """[..., m, n] with the spectrum and random singular vectors; singular values 0 map to 0."""
    *batch, m, n = shape
    k = min(m, n)
    sigma = spectrum(name, k)
    left, _ = torch.linalg.qr(gaussian(*batch, m, k, seed=seed))
    right, _ = torch.linalg.qr(gaussian(*batch, n, k, seed=seed + 500))
    polar = (left * (sigma > 0)) @ right.mT
    return Known((left * sigma) @ right.mT, sigma, left, right, polar)


def error(U: Tensor, exact: Tensor) -> float:
    """|U - exact|_F / |exact|_F."""
    return ((U.double() - exact).norm() / exact.norm()).item()
