"""Shampoo with averages.

    L <- b2 L + (1 - b2) G G',   R <- b2 R + (1 - b2) G' G,   M <- b1 M + (1 - b1) G
    W <- (1 - lr wd) W - lr L^(-1/4) M R^(-1/4)

Powers are those of the pseudo-inverse. Source: Gupta et al. (2018), arXiv 1802.09568.
"""

import numpy as np


def power(S, exponent):
    s, Q = np.linalg.eigh(S)
    kept = s > 1e-13 * s.max()
    return Q[:, kept] @ np.diag(s[kept] ** exponent) @ Q[:, kept].T


def step(W, G, state, *, lr, weight_decay, momentum=None, betas=(0.95, 0.95)):
    L = state["L"] = betas[1] * state.get("L", 0.0) + (1 - betas[1]) * G @ G.T
    R = state["R"] = betas[1] * state.get("R", 0.0) + (1 - betas[1]) * G.T @ G
    M = state["M"] = betas[0] * state.get("M", 0.0) + (1 - betas[0]) * G
    return (1 - lr * weight_decay) * W - lr * power(L, -0.25) @ M @ power(R, -0.25)
