"""Muon^2.

    V <- b2 V + (1 - b2) G o G,   N = EMA momentum,   U = polar(N / (sqrt(V) + eps))
    W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) U

Source: arXiv 2604.09967; result 7 of modded-nanogpt's track 3.
"""

import numpy as np

from tests.reference.momentum import ema
from tests.reference.polar import polar


def step(W, G, state, *, lr, weight_decay, momentum, nesterov=True, beta2=0.95, eps=0.0):
    m, n = W.shape
    V = state["V"] = beta2 * state.get("V", 0.0) + (1 - beta2) * G**2
    U = polar(ema(G, state, momentum, nesterov) / (np.sqrt(V) + eps))
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * U
