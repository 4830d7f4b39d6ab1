"""NorMuon, in the form of the official code and in that of the paper.

    U = polar(N),   v <- b2 v + (1 - b2) mean_j U_ij^2,   Q_i = U_i / sqrt(v_i),   v starts at zero
    official:  W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) (|U|_F / |Q|_F) Q
    paper:     W <- (1 - lr wd) W - lr (0.2 sqrt(m n) / |Q|_F) Q

Source: Li et al., "NorMuon" (2025), arXiv 2510.05491, and the repository zichongli5/NorMuon. The
paper's momentum is a plain EMA, the code's looks ahead.
"""

import numpy as np

from tests.reference.momentum import ema
from tests.reference.polar import polar


def even_rows(U, state, beta2):
    v = state.get("v", np.zeros((len(U), 1)))
    v = state["v"] = beta2 * v + (1 - beta2) * np.mean(U**2, axis=1, keepdims=True)
    return U / np.sqrt(v)


def step(W, G, state, *, lr, weight_decay, momentum, nesterov=True, beta2=0.95):
    m, n = W.shape
    U = polar(ema(G, state, momentum, nesterov))
    Q = even_rows(U, state, beta2)
    Q = Q * np.linalg.norm(U) / np.linalg.norm(Q) * np.sqrt(max(1, m / n))
    return (1 - lr * weight_decay) * W - lr * Q


def paper_step(W, G, state, *, lr, weight_decay, momentum, nesterov=False, beta2=0.95):
    Q = even_rows(polar(ema(G, state, momentum, nesterov)), state, beta2)
    fitted_lr = 0.2 * lr * np.sqrt(W.size) / np.linalg.norm(Q)
    return (1 - lr * weight_decay) * W - fitted_lr * Q
