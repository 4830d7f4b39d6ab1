"""Aurora, the iteration of the released code.

    tall N (m > n):  D_i = 1 / |N_i|,   U = polar(D N)
                     K - 1 times:  D_i <- D_i ((n/m) / |U_i|^2)^b,   U = polar(D N)
    square N:        U = polar(N)
    wide N:          U = polar(N); with `long_axis` the tall case on N', as in the release
    W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) U,   K = 2, b = 1/2

Source: Tilde Research, Aurora release (2026-05). The paper (arXiv 2606.27715) has tall ones only.
"""

import numpy as np

from tests.reference.momentum import ema
from tests.reference.polar import polar


def balanced(N, rounds=2, exponent=0.5):
    m, n = N.shape
    D = 1 / np.linalg.norm(N, axis=1, keepdims=True)
    U = polar(D * N)
    for _ in range(rounds - 1):
        D = D * (n / m / np.sum(U**2, axis=1, keepdims=True)) ** exponent
        U = polar(D * N)
    return U


def step(W, G, state, *, lr, weight_decay, momentum, nesterov=True, long_axis=False, **iteration):
    m, n = W.shape
    N = ema(G, state, momentum, nesterov)
    if m > n:
        U = balanced(N, **iteration)
    elif m < n and long_axis:
        U = balanced(N.T, **iteration).T
    else:
        U = polar(N)
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * U
