"""SOAP, as its official code does it.

First gradient: L = (1 - sb) G G', R = (1 - sb) G' G, Q_L and Q_R their eigenvectors, largest
eigenvalue first; the weights stay. Then, t = 1, 2, ...:

    G' = Q_L' G Q_R,   m <- b1 m + (1 - b1) G',   v <- b2 v + (1 - b2) G'^2
    W <- W - lr sqrt(1 - b2^t) / (1 - b1^t) Q_L (m / (sqrt(v) + eps)) Q_R'
    W <- (1 - lr wd) W
    L <- sb L + (1 - sb) G G',   R likewise;   m back to the coordinates of W
    every f steps: columns of Q and entries of v ordered by diag(Q' L Q), Q <- qr(L Q)
    m into the bases again

Eigenvectors of a singular factor are not unique: `state["Q"]` may hold them before the first step.

Source: Vyas et al. (2024), arXiv 2409.11321, and nikhilvyas/SOAP.
"""

import numpy as np


def eigenvectors(S):
    return np.linalg.eigh(S)[1][:, ::-1]


def step(
    W, G, state, *, lr, weight_decay, betas=(0.95, 0.95), shampoo_beta=0.95, every=10, eps=0.0
):
    b1, b2, sb = *betas, shampoo_beta
    first = "t" not in state
    state["L"] = sb * state.get("L", 0.0) + (1 - sb) * G @ G.T
    state["R"] = sb * state.get("R", 0.0) + (1 - sb) * G.T @ G
    if first:
        state.setdefault("Q", (eigenvectors(state["L"]), eigenvectors(state["R"])))
        state.update(t=0, m=np.zeros_like(G), v=np.zeros_like(G))
        return W

    state["t"] = t = state["t"] + 1
    QL, QR = state["Q"]
    rotated = QL.T @ G @ QR
    state["m"] = b1 * state["m"] + (1 - b1) * rotated
    state["v"] = b2 * state["v"] + (1 - b2) * rotated**2
    D = QL @ (state["m"] / (np.sqrt(state["v"]) + eps)) @ QR.T
    W = W - lr * np.sqrt(1 - b2**t) / (1 - b1**t) * D
    W = (1 - lr * weight_decay) * W
    if t % every == 0:
        refresh(state)
    return W


def refresh(state):
    (QL, QR), L, R = state["Q"], state["L"], state["R"]
    momentum = QL @ state["m"] @ QR.T
    rows = np.argsort(-np.diag(QL.T @ L @ QL))
    columns = np.argsort(-np.diag(QR.T @ R @ QR))
    state["v"] = state["v"][rows][:, columns]
    QL, QR = np.linalg.qr(L @ QL[:, rows])[0], np.linalg.qr(R @ QR[:, columns])[0]
    state["Q"] = QL, QR
    state["m"] = QL.T @ momentum @ QR
