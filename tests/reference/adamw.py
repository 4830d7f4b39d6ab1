"""AdamW.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
    w <- (1 - lr wd) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

Source: Loshchilov and Hutter (2019), arXiv 1711.05101, algorithm 2. b1 is `momentum`.
"""

import numpy as np


def step(W, G, state, *, lr, weight_decay, momentum, beta2=0.95, eps=1e-10):
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = momentum * state.get("m", 0.0) + (1 - momentum) * G
    v = state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * G**2
    direction = (m / (1 - momentum**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return (1 - lr * weight_decay) * W - lr * direction
