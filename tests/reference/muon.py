"""Muon.

    N = EMA momentum,   W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) polar(N)

Source: Jordan et al., "Muon" (2024), kellerjordan.github.io/posts/muon; an EMA as in torch.
"""

import numpy as np

from tests.reference.momentum import ema
from tests.reference.polar import polar


def step(W, G, state, *, lr, weight_decay, momentum, nesterov=True):
    m, n = W.shape
    N = ema(G, state, momentum, nesterov)
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * polar(N)
