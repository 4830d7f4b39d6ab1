"""DynMuon.

    N = heavy ball with Nesterov,   X = N / |N|,   E = X X' - I,   d = p(t) / 2
    U = (I + d E + d (d - 1) / 2 E^2) polar(N), times (|N| / unit)^p where a unit is given
    p(t) = -0.25 + 0.5 / (1 + exp((t - middle) / width))

Source: arXiv 2605.17109; result 28 of modded-nanogpt's track 3.
"""

import numpy as np

from tests.reference.momentum import heavy_ball
from tests.reference.polar import polar


def power(t, middle=128, width=128):
    return -0.25 + 0.5 / (1 + np.exp((t - middle) / width))


def bent(N, p, unit=None):
    X, d = N / np.linalg.norm(N), p / 2
    E = X @ X.T - np.eye(len(X))
    U = (np.eye(len(X)) + d * E + d * (d - 1) / 2 * E @ E) @ polar(N)
    if len(X) > X.shape[1]:  # on the short side
        F = X.T @ X - np.eye(X.shape[1])
        U = polar(N) @ (np.eye(len(F)) + d * F + d * (d - 1) / 2 * F @ F)
    return U if unit is None else U * (np.linalg.norm(N) / unit) ** p


def step(W, G, state, *, lr, weight_decay, momentum, unit=None, middle=128, width=128):
    m, n = W.shape
    t = state["t"] = state.get("t", -1) + 1
    U = bent(heavy_ball(G, state, momentum, True), power(t, middle, width), unit)
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * U
