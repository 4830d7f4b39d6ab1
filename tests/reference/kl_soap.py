"""KL-SOAP.

First gradient: L = (1 - b)/n G G', R = (1 - b)/m G' G, Q_L and Q_R their eigenvectors, largest
eigenvalue first, all eigenvalues l, r = 0.1; the weights stay. Then in every step:

    G' = Q_L' G Q_R,   m <- b1 m + (1 - b1) G',   v <- b2 v + (1 - b2) G'^2
    W <- (1 - lr wd) W - lr Q_L (m / (sqrt(v) + eps)) Q_R'
    L <- b L + (1 - b)/n G Q_R diag(1/r) Q_R' G',   R <- b R + (1 - b)/m G' Q_L diag(1/l) Q_L' G
    l_i <- b l_i + (1 - b) mean_j G'_ij^2 / r_j,    r_j <- b r_j + (1 - b) mean_i G'_ij^2 / l_i
    (the old l and r on the right), l at least c(m)^-2 and r at least c(n)^-2,
    c(k) = max(10, min(k, 4000))
    Q_L <- qr(L Q_L),  Q_R <- qr(R Q_R),  m rotated with them

Gradients are in units of the first one's root mean square. Eigenvectors of a singular factor are
not unique: `state["Q"]` may hold them before the first step.

Source: Lin et al. (2025), arXiv 2509.03378, and yorkerlin/KL-Methods.
"""

import numpy as np

from tests.reference.soap import eigenvectors


def least(length):
    """The smallest eigenvalue of a side: its inverse square root is capped."""
    return float(max(10, min(length, 4000))) ** -2


def start(G, state, b):
    m, n = G.shape
    state["L"], state["R"] = (1 - b) / n * G @ G.T, (1 - b) / m * G.T @ G
    state.setdefault("Q", (eigenvectors(state["L"]), eigenvectors(state["R"])))
    state["l"], state["r"] = np.full((m, 1), 0.1), np.full((1, n), 0.1)
    state["m"], state["v"] = np.zeros_like(G), np.zeros_like(G)


def step(W, G, state, *, lr, weight_decay, betas=(0.95, 0.9), shampoo_beta=0.9, every=1, eps=0.0):
    (b1, b2), b, (m, n) = betas, shampoo_beta, W.shape
    G = G / state.setdefault("unit", np.sqrt(np.mean(G**2)))
    if "L" not in state:
        start(G, state, b)
        return (1 - lr * weight_decay) * W

    state["t"] = state.get("t", 0) + 1
    (QL, QR), left, right = state["Q"], state["l"], state["r"]
    rotated = QL.T @ G @ QR
    state["m"] = b1 * state["m"] + (1 - b1) * rotated
    state["v"] = b2 * state["v"] + (1 - b2) * rotated**2
    D = QL @ (state["m"] / (np.sqrt(state["v"]) + eps)) @ QR.T
    state["L"] = b * state["L"] + (1 - b) / n * G @ QR @ np.diag(1 / right[0]) @ QR.T @ G.T
    state["R"] = b * state["R"] + (1 - b) / m * G.T @ QL @ np.diag(1 / left[:, 0]) @ QL.T @ G
    rows, columns = (np.mean(rotated**2 / s, i, keepdims=True) for i, s in ((1, right), (0, left)))
    state["l"] = np.maximum(b * left + (1 - b) * rows, least(m))
    state["r"] = np.maximum(b * right + (1 - b) * columns, least(n))
    if state["t"] % every == 0:
        new = np.linalg.qr(state["L"] @ QL)[0], np.linalg.qr(state["R"] @ QR)[0]
        state["m"] = new[0].T @ QL @ state["m"] @ QR.T @ new[1]
        state["Q"] = new
    return (1 - lr * weight_decay) * W - lr * D
