"""SOAP-H.

    first step: Q_L, Q_R = eigenvectors of G G', G' G;   then in every step, the first included
    M <- b1 M + (1 - b1) G,   L <- sb L + (1 - sb) G G',   R <- sb R + (1 - sb) G' G
    V <- b2 V + (1 - b2) (Q_L' G Q_R)^2,   U = Q_L ((Q_L' M Q_R) / sqrt(V)) Q_R'
    after the first: Q <- qr(L Q), unsorted;   W <- (1 - lr wd) W - lr U

In its own bases the first gradient is diagonal: what rounding leaves beside it counts as zero, and
0 / 0 as 0. `state["Q"]` may hold the first bases.

Source: result 27 of modded-nanogpt's track 3.
"""

import numpy as np


def step(W, G, state, *, lr, weight_decay, momentum=None, betas=(0.95, 0.9), shampoo_beta=0.9):
    (b1, b2), sb = betas, shampoo_beta
    first = "V" not in state
    M = state["M"] = b1 * state.get("M", 0.0) + (1 - b1) * G
    L = state["L"] = sb * state.get("L", 0.0) + (1 - sb) * G @ G.T
    R = state["R"] = sb * state.get("R", 0.0) + (1 - sb) * G.T @ G
    if first:
        state.setdefault("Q", tuple(np.linalg.eigh(S)[1][:, ::-1] for S in (L, R)))
    QL, QR = state["Q"]
    seen, mean = QL.T @ G @ QR, QL.T @ M @ QR
    if first:
        seen, mean = seen * np.eye(*G.shape), mean * np.eye(*G.shape)
        state["rest"] = QL.T @ M @ QR - mean  # rounding, which stays out of M too
        state["M"] = M - QL @ state["rest"] @ QR.T
    V = state["V"] = b2 * state.get("V", 0.0) + (1 - b2) * seen**2
    U = QL @ (mean / np.where(V == 0, 1.0, np.sqrt(V))) @ QR.T
    if not first:
        state["Q"] = np.linalg.qr(L @ QL)[0], np.linalg.qr(R @ QR)[0]
    return (1 - lr * weight_decay) * W - lr * U
