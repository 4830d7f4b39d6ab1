"""AdaMuon.

    O = polar(sign(M)),   v <- b2 v + (1 - b2) O^2,   U = O / sqrt(v)
    W <- (1 - lr wd) W - lr U 0.2 sqrt(m n) / |U|

Source: arXiv 2507.11005.
"""

import numpy as np

from tests.reference.momentum import ema
from tests.reference.polar import polar


def step(W, G, state, *, lr, weight_decay, momentum, beta2=0.95):
    P = polar(np.sign(ema(G, state, momentum, False)))
    v = state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * P**2
    U = P / np.sqrt(v)
    return (1 - lr * weight_decay) * W - lr * U * 0.2 * np.sqrt(W.size) / np.linalg.norm(U)
