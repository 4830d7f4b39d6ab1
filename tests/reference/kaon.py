"""Kaon.

    X = M / (safety |M|_F),   X <- 4.1 (I - X X')^2 X  five times,   U = X / 1.175
    D = U min(most, sqrt(min(m, n)) / |U|_F),   W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) D

With the general bump K (I - z X X')^2 X, Kaon's is K = 4.1, z = 1. The source has safety 1.

Source: arXiv 2605.11181 (2026); the rescaling and the safety are ours.
"""

import numpy as np

from tests.reference.momentum import ema


def chaotic(M, safety=1.021, K=4.1, z=1.0, divisor=1.175):
    X = M / (safety * np.linalg.norm(M))
    for _ in range(5):
        B = np.eye(len(X)) - z * X @ X.T
        X = K * B @ B @ X
    return X / divisor


def step(W, G, state, *, lr, weight_decay, momentum, nesterov=True, most=4.0):
    m, n = W.shape
    U = chaotic(ema(G, state, momentum, nesterov))
    D = U * min(most, np.sqrt(min(m, n)) / np.linalg.norm(U))
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * D
