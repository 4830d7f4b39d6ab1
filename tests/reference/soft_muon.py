"""Soft-Muon, and its interpolation with Contra-Muon, through singular values.

    x_0 = s / |N|_4,   x_(k+1) = 2 x_k - 1.5 x_k^3 + 0.5 x_k^5,   f(s) = sum_k c_k x_k
    S = f(N) k^(1/4) / |f(N)|_4,   U = (C + b (S - C)) |C|_4 / |.|_4

Source: nilin.github.io/contra-muon-and-soft-muon; result 20 of modded-nanogpt's track 3.
"""

import numpy as np

from tests.reference.contra_muon import contra, schatten4
from tests.reference.momentum import ema
from tests.reference.polar import polar

WEIGHTS = [
    *(0.1091613623, 0.07085664498, 0.05210528973, 0.05457295795, 0.05011334061, 0.03334622198),
    *(0.05022104481, 0.1053727358, 0.1187323776, 0.1185061091, 0.1185059576, 0.1185059576),
]


def value(x, weights=WEIGHTS):
    total = 0.0
    for c in weights:
        total = total + c * x
        x = 2 * x - 1.5 * x**3 + 0.5 * x**5
    return total


def soft(N):
    U, s, Vt = np.linalg.svd(N, full_matrices=False)
    f = value(s / np.sum(s**4) ** 0.25)
    return U * (f * (len(s) / np.sum(f**4)) ** 0.25) @ Vt


def moved(W, U, lr, weight_decay):
    m, n = W.shape
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * U


def step(W, G, state, *, lr, weight_decay, momentum):
    return moved(W, soft(ema(G, state, momentum, True)), lr, weight_decay)


def interpolated_step(W, G, state, *, lr, weight_decay, momentum, b=0.5, c=0.2):
    N = ema(G, state, momentum, True)
    C = contra(N, polar(N), c)
    U = C + b * (soft(N) - C)
    return moved(W, U * schatten4(C) / schatten4(U), lr, weight_decay)
