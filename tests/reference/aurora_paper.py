"""Aurora, the iteration of the paper: each round starts from the polar factor of the last.

    X = N / |N|_F,   d_i = 1
    K times:  d_i <- d_i^b |X_i|^(1 - b),   X = polar(sqrt(n/m) diag(d)^-1 X)
    tall N: U = X,  others: U = polar(N),   W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) U

Source: Tilde Research, "Aurora" (2026), arXiv 2606.27715, algorithm 3; K = 2, b = 1/2.
"""

import numpy as np

from tests.reference.momentum import ema
from tests.reference.polar import polar


def balanced(N, rounds=2, damping=0.5):
    m, n = N.shape
    X = N / np.linalg.norm(N)
    d = np.ones((m, 1))
    for _ in range(rounds):
        d = d**damping * np.linalg.norm(X, axis=1, keepdims=True) ** (1 - damping)
        X = polar(np.sqrt(n / m) * X / d)
    return X


def step(W, G, state, *, lr, weight_decay, momentum, nesterov=True, **iteration):
    m, n = W.shape
    N = ema(G, state, momentum, nesterov)
    U = balanced(N, **iteration) if m > n else polar(N)
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * U
