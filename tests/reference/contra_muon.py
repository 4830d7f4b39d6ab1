"""Contra-Muon, in both of its forms.

    O = polar(N),   C = O - c N / op(N),   U = C size(O) / size(C)
    op: (sum s^4)^(1/4), or |N v| after five rounds v <- N'N v / |N'N v| from v = 1

Source: nilin/contra-muon; results 11 and 20 of modded-nanogpt's track 3.
"""

import numpy as np

from tests.reference.momentum import ema
from tests.reference.polar import polar


def schatten4(X):
    return np.linalg.norm(X @ X.T) ** 0.5


def power_iterations(X, rounds=5):
    v = np.ones(X.shape[1])
    for _ in range(rounds):
        v = X.T @ (X @ v)
        v = v / np.linalg.norm(v)
    return np.linalg.norm(X @ v)


def contra(N, P, c=0.2, op=schatten4, size=schatten4):
    C = P - c * N / op(N)
    return C * size(P) / size(C)


def step(W, G, state, *, lr, weight_decay, momentum, c=0.2, op=schatten4, size=schatten4):
    m, n = W.shape
    N = ema(G, state, momentum, True)
    t = state["t"] = state.get("t", -1) + 1
    U = contra(N, polar(N), c(t) if callable(c) else c, op, size)
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * U
