"""Aurora with a row scale that is kept between steps.

    X = N / rms_i |N_i|,   f_i = 1 / |X_i|,   D = f in the first step
    D_i <- D_i (f_i / f_i before)^follow, at least f_i / reach and at most f_i reach
    U = polar(D X)
    D_i <- D_i ((n/m) / |U_i|^2)^b,   D <- D / rms_i |D_i X_i|,   for the next step
    tall N: U,  others: polar(N),   W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) U

Source: this library; the correction is that of the Aurora release (2026-05). b = 1/2, follow = 1/5,
reach = 10.
"""

import numpy as np

from tests.reference.momentum import ema
from tests.reference.polar import polar


def row_norms(X):
    return np.linalg.norm(X, axis=1, keepdims=True)


def rms_row_norm(X):
    return np.linalg.norm(X) / np.sqrt(len(X))


def balanced(N, state, exponent=0.5, follow=0.2, reach=10.0):
    m, n = N.shape
    X = N / rms_row_norm(N)
    f = 1 / row_norms(X)
    moved = state.get("D", f) * (f / state.get("f", f)) ** follow
    D = np.clip(moved, f / reach, f * reach)
    U = polar(D * X)
    D = D * (n / m / row_norms(U) ** 2) ** exponent
    state["f"] = f
    state["D"] = D / rms_row_norm(D * X)
    return U


def step(W, G, state, *, lr, weight_decay, momentum, nesterov=True, **iteration):
    m, n = W.shape
    N = ema(G, state, momentum, nesterov)
    U = balanced(N, state, **iteration) if m > n else polar(N)
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * U
