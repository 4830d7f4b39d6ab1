"""PolarAdamW.

    m <- b1 m + (1 - b1) G,   v <- b2 v + (1 - b2) G^2
    D = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) polar(D)

polar(D) is a partial isometry where D is singular, as the first one, a matrix of signs, may be.

Source: H. Zhang (2026), arXiv 2605.07067.
"""

import numpy as np


def polar(M):
    U, s, Vt = np.linalg.svd(M, full_matrices=False)
    return U @ np.diag(s > 1e-12 * s[0]) @ Vt


def step(W, G, state, *, lr, weight_decay, momentum=None, betas=(0.9, 0.95), eps=0.0):
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = betas[0] * state.get("m", 0.0) + (1 - betas[0]) * G
    v = state["v"] = betas[1] * state.get("v", 0.0) + (1 - betas[1]) * G**2
    D = (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    factor = np.sqrt(max(1, W.shape[0] / W.shape[1]))
    return (1 - lr * weight_decay) * W - lr * factor * polar(D)
