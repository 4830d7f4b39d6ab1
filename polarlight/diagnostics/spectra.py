"""Numbers about one matrix: leverages, row shares, singular values."""

import torch
from torch import Tensor

from polarlight.linalg.matrices import unit_scale
from polarlight.linalg.rows import row_norms


def leverages(M: Tensor) -> Tensor:
    """Squared row norms of the polar factor of tall M, [..., m, n] -> [..., m].

    They sum to the rank, depend on the column space alone, and come from a thin singular value
    decomposition. Directions below max(m, n) machine epsilons of the largest singular value do not
    count, entries that are not finite count as zero.
    """
    X = unit_scale(M).nan_to_num(0.0)
    U, S, _ = torch.linalg.svd(X, full_matrices=False)
    cutoff = max(X.shape[-2:]) * torch.finfo(X.dtype).eps
    kept = cutoff * S[..., :1] < S
    result: Tensor = (U * kept.unsqueeze(-2)).square().sum(dim=-1)
    return result


def row_shares(D: Tensor) -> Tensor:
    """Each row's share of the squared update, in units of an equal share, [..., m, n] -> [..., m].

    The mean is 1; for an orthonormal factor the share is the leverage divided by n/m. A zero matrix
    gives zeros.
    """
    squares = row_norms(unit_scale(D)).square().squeeze(-1)
    mean = squares.mean(dim=-1, keepdim=True)
    return squares / torch.where(mean == 0, 1.0, mean)


def starved(shares: Tensor, threshold: float) -> Tensor:
    """Fraction of rows whose share lies below `threshold`, [..., m] -> [...]."""
    return (shares < threshold).float().mean(dim=-1)


def spread(x: Tensor) -> Tensor:
    """Standard deviation over mean along the last dimension; zero where the mean is zero."""
    mean = x.mean(dim=-1)
    return x.std(dim=-1, unbiased=False) / torch.where(mean == 0, 1.0, mean)


def singular_values(D: Tensor) -> Tensor:
    """Singular values over their root mean square, descending, [..., m, n] -> [..., min(m, n)]."""
    S = torch.linalg.svdvals(unit_scale(D).nan_to_num(0.0))
    rms = S.square().mean(dim=-1, keepdim=True).sqrt()
    result: Tensor = S / torch.where(rms == 0, 1.0, rms)
    return result
