"""One-sided PolarGrad, left and right, with the nuclear norm to a power.

    right:  U = M (M'M)^(-1/2)      left:  U = (M M')^(-1/2) M       (pseudo-inverse)
    W <- (1 - lr wd) W - lr s U,    s = |M|_*^alpha, or 0.2 sqrt(max(m, n)) where alpha is None
    centred:  U = P side(P M),  P = I - 1 1'/m

Source: the symmetry-compatible stack (2026), arXiv 2605.18106.
"""

import numpy as np

from tests.reference.momentum import ema
from tests.reference.row_norm import without_mean


def inverse_root(C):
    eigenvalues, V = np.linalg.eigh(C)
    keep = eigenvalues > 1e-12 * eigenvalues.max()
    return (V[:, keep] / np.sqrt(eigenvalues[keep])) @ V[:, keep].T


def right(M):
    return M @ inverse_root(M.T @ M)


def left(M):
    return inverse_root(M @ M.T) @ M


def step(W, G, state, *, lr, weight_decay, momentum, side=right, alpha=None, centred=False):
    M = ema(G, state, momentum, nesterov=False)
    M = without_mean(M) if centred else M
    U = without_mean(side(M)) if centred else side(M)
    s = 0.2 * np.sqrt(max(W.shape)) if alpha is None else np.sum(M * U) ** alpha
    return (1 - lr * weight_decay) * W - lr * s * U
