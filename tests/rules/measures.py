"""Measures of balanced polar factors, one number per matrix."""

import torch
from torch import Tensor


def leverages(U: Tensor) -> Tensor:
    """Squared row norms, [..., m, n] -> [..., m]."""
    return U.square().sum(dim=-1)


def spread(U: Tensor) -> Tensor:
    """Standard deviation over mean of the leverages, [..., m, n] -> [...]; 0 when all are equal."""
    shares = leverages(U)
    return shares.std(dim=-1, correction=0) / shares.mean(dim=-1)


def alignment(M: Tensor, U: Tensor) -> Tensor:
    """<M, U> over the nuclear norm of M: 1 for the polar factor and below it for all others."""
    return (M * U).sum(dim=(-2, -1)) / torch.linalg.svdvals(M).sum(dim=-1)
