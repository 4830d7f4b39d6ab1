"""Tempered polar factor.

    O = polar(N),   Y = N / |N|_4 - O,   T = O + rho Y min(1, 0.25 |O|_4 / |Y|_4),   T |O|_4 / |T|_4

Source: result 38 of modded-nanogpt's track 3.
"""

import numpy as np

from tests.reference.contra_muon import schatten4
from tests.reference.momentum import ema
from tests.reference.polar import polar


def tempered(N, P, rho=0.05, most=0.25):
    Y = N / schatten4(N) - P
    T = P + rho * Y * min(1.0, most * schatten4(P) / schatten4(Y))
    return T * schatten4(P) / schatten4(T)


def step(W, G, state, *, lr, weight_decay, momentum, rho=0.05):
    m, n = W.shape
    N = ema(G, state, momentum, True)
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * tempered(N, polar(N), rho)
