"""MuonEq: the momentum is equilibrated, then orthogonalised.

    r_i = |N_i|,  c_j = |column j of N|
    R: N_ij / r_i     C: N_ij / c_j     RC: N_ij / (r_i c_j), both from the same N
    W <- (1 - lr wd) W - lr 0.2 sqrt(max(m, n)) polar(.)

With `phase`, RC in steps t < phase and R from step t = phase on, t counted from 1.

Source: "MuonEq" (2026), arXiv 2603.28254, and the repository MaeChd/muon-eq (heavy ball).
"""

import numpy as np

from tests.reference.momentum import heavy_ball
from tests.reference.polar import polar


def equilibrated(N, mode):
    r = np.linalg.norm(N, axis=1, keepdims=True)
    c = np.linalg.norm(N, axis=0, keepdims=True)
    return {"R": N / r, "C": N / c, "RC": N / r / c}[mode]


def step(W, G, state, *, lr, weight_decay, momentum, nesterov=True, mode="R", phase=None):
    t = state["t"] = state.get("t", 0) + 1
    if phase is not None:
        mode = "RC" if t < phase else "R"
    N = heavy_ball(G, state, momentum, nesterov)
    U = polar(equilibrated(N, mode))
    return (1 - lr * weight_decay) * W - lr * 0.2 * np.sqrt(max(W.shape)) * U
