"""RowNorm, plain and centred.

    M <- mu M + (1 - mu) G,   U_i = M_i / |M_i|,   W <- (1 - lr wd) W - lr 0.2 sqrt(n) U
    centred:  P = I - 1 1'/m,   U = P rows(P M)

Source: the symmetry-compatible stack (2026), arXiv 2605.18106; the factor 0.2 sqrt(n) makes entries
of unit rows as large as AdamW's.
"""

import numpy as np

from tests.reference.momentum import ema


def rows(M):
    return M / np.linalg.norm(M, axis=1, keepdims=True)


def without_mean(M):
    m = M.shape[0]
    return (np.eye(m) - np.full((m, m), 1 / m)) @ M


def step(W, G, state, *, lr, weight_decay, momentum, centred=False):
    M = ema(G, state, momentum, nesterov=False)
    U = without_mean(rows(without_mean(M))) if centred else rows(M)
    return (1 - lr * weight_decay) * W - lr * 0.2 * np.sqrt(W.shape[1]) * U
