"""SinkSOAP.

    L <- b L + (1 - b) G G',   R <- b R + (1 - b) G' G,   U, V their eigenvectors
    X = U' N V,   E = X^2 + d,   ten times  r = (1/m) / (E c),  c = (1/n) / (E' r)  from c = 1
    D = U (sqrt(r) X sqrt(c)) V' at norm sqrt(min(m, n)); unless square, along the long axis:
    v <- b2 v + (1 - b2) mean D^2,   D <- D / sqrt(v) at the norm of D

d is a fraction of the mean energy.

Source: result 26 of modded-nanogpt's track 3.
"""

import numpy as np

from tests.reference.momentum import ema


def direction(N, G, state, beta=0.95, rounds=10, floor=1e-8):
    L = state["L"] = beta * state.get("L", 0.0) + (1 - beta) * G @ G.T
    R = state["R"] = beta * state.get("R", 0.0) + (1 - beta) * G.T @ G
    U, V = np.linalg.eigh(L)[1], np.linalg.eigh(R)[1]
    X = U.T @ N @ V
    E = X**2 / np.mean(X**2) + floor
    m, n = X.shape
    c = np.ones(n)
    for _ in range(rounds):
        r = 1 / m / (E @ c)
        c = 1 / n / (E.T @ r)
    D = U @ (np.sqrt(r)[:, None] * X * np.sqrt(c)) @ V.T
    return D * np.sqrt(min(m, n)) / np.linalg.norm(D)


def even(D, state, beta2=0.95):
    m, n = D.shape
    if m == n:
        return D
    seen = np.mean(D**2, axis=1 if m > n else 0, keepdims=True)
    v = state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * seen
    Y = D / np.sqrt(v)
    return Y * np.linalg.norm(D) / np.linalg.norm(Y)


def step(W, G, state, *, lr, weight_decay, momentum, beta=0.95, beta2=0.95):
    m, n = W.shape
    D = even(direction(ema(G, state, momentum, True), G, state, beta), state, beta2)
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * D
