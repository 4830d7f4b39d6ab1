"""Hybrids of row normalisation and the polar factor, in both orders, for rows, columns and pairs.

    row then polar:  U = polar(rows(M))       polar then row:  U = rows(polar(M))
    columns: the same for M', transposed back.   pairs: rows j and r + j of M side by side as one.
    W <- (1 - lr wd) W - lr s U;  s = 0.2 sqrt(max(p, q)) and 0.2 sqrt(q), p x q the laid-out matrix

Source: the symmetry-compatible stack (2026), arXiv 2605.18106, HybridPolarGradM with alpha = 0.
"""

import numpy as np

from tests.reference.momentum import ema
from tests.reference.polar import polar
from tests.reference.row_norm import rows


def laid_out(M, layout):
    if layout == "pairs":
        r = M.shape[0] // 2
        return np.hstack([M[:r], M[r:]])
    return M.T if layout == "columns" else M


def taken_back(U, layout):
    if layout == "pairs":
        n = U.shape[1] // 2
        return np.vstack([U[:, :n], U[:, n:]])
    return U.T if layout == "columns" else U


def row_then_polar(X):
    return 0.2 * np.sqrt(max(X.shape)) * polar(rows(X))


def polar_then_row(X):
    return 0.2 * np.sqrt(X.shape[1]) * rows(polar(X))


def step(W, G, state, *, lr, weight_decay, momentum, order=row_then_polar, layout="rows"):
    M = ema(G, state, momentum, nesterov=False)
    U = taken_back(order(laid_out(M, layout)), layout)
    return (1 - lr * weight_decay) * W - lr * U
