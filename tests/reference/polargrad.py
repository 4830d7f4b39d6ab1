"""PolarGrad, in both orders.

    momentum first:  M <- mu M + (1 - mu) G,  U = polar(M),  W <- (1 - lr wd) W - lr |M|_* U
    polar first:     U = polar(G),  P <- mu P + (1 - mu) U,  W <- (1 - lr wd) W - lr |G|_* P

|.|_* is the sum of the singular values.

Source: Lau et al. (2025), arXiv 2505.21799, and timlautk/polargrad. `power` raises the norm.
"""

import numpy as np

from tests.reference.momentum import ema
from tests.reference.polar import polar


def nuclear(M):
    return np.linalg.svd(M, compute_uv=False).sum()


def step(W, G, state, *, lr, weight_decay, momentum, nesterov=False, power=1.0):
    M = ema(G, state, momentum, nesterov)
    return (1 - lr * weight_decay) * W - lr * nuclear(M) ** power * polar(M)


def polar_first_step(W, G, state, *, lr, weight_decay, momentum):
    state["P"] = momentum * state.get("P", 0.0) + (1 - momentum) * polar(G)
    return (1 - lr * weight_decay) * W - lr * nuclear(G) * state["P"]
