"""U-NorMuon: NorMuon on tall matrices, with rows of norm sqrt(n/m); Muon on the others.

    U = polar(N),   v <- b2 v + (1 - b2) mean_j U_ij^2,   v starts at zero
    tall:  U_i <- U_i / sqrt(v_i), then as a whole to a root mean square row norm of sqrt(n/m)
    W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) U

Source: Tilde Research, Aurora blog (2026-05). Of the readings in circulation: rows at sqrt(n/m) in
front of Muon's factor.
"""

import numpy as np

from tests.reference.momentum import ema
from tests.reference.polar import polar


def step(W, G, state, *, lr, weight_decay, momentum, nesterov=True, beta2=0.95):
    m, n = W.shape
    U = polar(ema(G, state, momentum, nesterov))
    if m > n:
        v = beta2 * state.get("v", 0.0) + (1 - beta2) * np.mean(U**2, axis=1, keepdims=True)
        state["v"] = v
        U = U / np.sqrt(v)
        rms_row_norm = np.sqrt(np.mean(np.sum(U**2, axis=1)))
        U = U * np.sqrt(n / m) / rms_row_norm
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * U
