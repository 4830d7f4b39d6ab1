"""Statistics of one matrix: leverages, row shares, singular values."""

import torch
from torch import Tensor

from polarlight.linalg.matrices import nonzero, unit_scale
from polarlight.linalg.rows import row_norms


def leverages(M: Tensor) -> Tensor:
    """Return squared row norms of the polar factor of tall M, [..., m, n] -> [..., m].

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


def gram_leverages(M: Tensor, gram: Tensor) -> Tensor:
    """Return leverages of tall M from its Gram matrix, [..., m, n] -> [..., m]; faster.

    A Cholesky factor of M'M + ridge replaces the singular value decomposition. Directions count by
    sigma^2 / (sigma^2 + ridge), where sqrt(ridge) is about 1e-4 of the largest singular value for
    a few large ones: those at 1e-3 of it keep 0.99 of their leverage.

    Args:
        M: Tall matrices, finite.
        gram: `precise_gram(M)`, [..., n, n].
    """
    n = gram.shape[-1]
    size = gram.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None]
    noise = M.shape[-2] * (10 * torch.finfo(torch.float32).eps) ** 2
    ridge = torch.where(size == 0, 1.0, noise * size)
    L, _ = torch.linalg.cholesky_ex(gram + ridge * torch.eye(n, dtype=gram.dtype, device=M.device))
    X = torch.linalg.solve_triangular(L.to(M.dtype), M.mT, upper=False)
    result: Tensor = X.square().sum(dim=-2)
    return result


def precise_gram(M: Tensor) -> Tensor:
    """Return M'M, [..., m, n] -> [..., n, n], in float64 where the device has it."""
    X = M if M.device.type == "mps" else M.double()
    return X.mT @ X


def spectrum(gram: Tensor) -> Tensor:
    """Return singular values from a Gram matrix, [..., n, n] -> [..., n], descending.

    Exact to about the root of the dtype's epsilon, relative to the largest.
    """
    values: Tensor = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(-1)
    return values


def orthogonality_error(gram: Tensor) -> Tensor:
    """Return |c D'D - I|_F / sqrt(n) with tr(c D'D) = n from D'D, [..., n, n] -> [...].

    Zero for a multiple of an orthonormal factor, 1 for a zero matrix.
    """
    n = gram.shape[-1]
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None]
    identity = torch.eye(n, dtype=gram.dtype, device=gram.device)
    error = torch.linalg.matrix_norm(gram * (n / nonzero(trace)) - identity)
    scaled: Tensor = error / n**0.5
    return scaled


def row_shares(D: Tensor) -> Tensor:
    """Return each row's squared norm over the mean of all rows, [..., m, n] -> [..., m].

    The mean is 1; for an orthonormal factor the share is the leverage divided by n/m. A zero matrix
    gives zeros.
    """
    squares = row_norms(unit_scale(D)).square().squeeze(-1)
    mean = squares.mean(dim=-1, keepdim=True)
    return squares / torch.where(mean == 0, 1.0, mean)


def starved(shares: Tensor, threshold: float) -> Tensor:
    """Return the fraction of rows whose share lies below `threshold`, [..., m] -> [...]."""
    return (shares < threshold).float().mean(dim=-1)


def spread(x: Tensor) -> Tensor:
    """Return deviation over mean along the last dimension; zero where the mean is zero."""
    mean = x.mean(dim=-1)
    return x.std(dim=-1, unbiased=False) / torch.where(mean == 0, 1.0, mean)


def singular_values(D: Tensor) -> Tensor:
    """Return singular values over their RMS, descending, [..., m, n] -> [..., min(m, n)]."""
    S = torch.linalg.svdvals(unit_scale(D).nan_to_num(0.0))
    rms = S.square().mean(dim=-1, keepdim=True).sqrt()
    result: Tensor = S / torch.where(rms == 0, 1.0, rms)
    return result
