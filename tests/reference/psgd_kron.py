"""PSGD-Kron.

    Q_0 = s I,  s = mean(G^4)^(-1/32);   each step: Q_L and Q_R to equal largest entries, then
    A = Q_L M Q_R',   B = Q_L^-T v Q_R^-1
    Q_L <- Q_L - triu(A A' - B B') Q_L / l,   Q_R <- Q_R - triu(A'A - B'B) Q_R / l'
    l = |S x| / |x|,  x = S c,  c the longest column of S = A A' + B B';   U = Q_L'Q_L M Q_R'Q_R

Source: arXiv 2402.04553, 2402.11858; result 33 of modded-nanogpt's track 3.
"""

import numpy as np


def norm(S):
    x = S @ S[:, np.argmax(np.linalg.norm(S, axis=0))]
    return np.linalg.norm(S @ x) / np.linalg.norm(x)


def fitted(left, right, M, v):
    f = np.sqrt(np.abs(right).max() / np.abs(left).max())
    left, right = left * f, right / f
    A, B = left @ M @ right.T, np.linalg.inv(left).T @ v @ np.linalg.inv(right)
    S, T, U, V = A @ A.T, B @ B.T, A.T @ A, B.T @ B
    return (
        left - np.triu(S - T) @ left / norm(S + T),
        right - np.triu(U - V) @ right / norm(U + V),
    )


def step(W, G, state, *, lr, weight_decay, momentum=None, probes, beta=0.95):
    """`probes(t)` is the normal matrix of step t."""
    G = G / state.setdefault("unit", np.sqrt(np.mean(G**2)))
    t = state["t"] = state.get("t", -1) + 1
    state["M"] = beta * state.get("M", 0.0) + (1 - beta) * G
    M, s = state["M"] / (1 - beta ** (t + 1)), np.mean(G**4) ** (-1 / 32)
    left, right = state.get("Q", (s * np.eye(len(G)), s * np.eye(G.shape[1])))
    state["Q"] = left, right = fitted(left, right, M, probes(t))
    U = left.T @ left @ M @ right.T @ right
    return (1 - lr * weight_decay) * W - lr * U / np.sqrt(np.mean(U**2))
