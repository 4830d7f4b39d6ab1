"""Freon.

    M = U S V',   D = U S^p V',   p = 1 - 2 c,   q = 2 (1 - c)
    sum:   p-th power of S / (sum s^q)^(1/q)           mean:  the mean of s^q instead of the sum
    polar: D sqrt(k) / |D|_F,  k = min(m, n)           own:   D as it is
    W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) D

Source: arXiv 2605.11181 (2026).
"""

import numpy as np

from tests.reference.momentum import ema


def direction(M, c, size):
    p, q = 1 - 2 * c, 2 * (1 - c)
    U, s, Vt = np.linalg.svd(M, full_matrices=False)
    if size == "sum":
        s = s / np.sum(s**q) ** (1 / q)
    if size == "mean":
        s = s / np.mean(s**q) ** (1 / q)
    powers = s**p
    if size == "polar":
        powers = powers * np.sqrt(len(s)) / np.linalg.norm(powers)
    return U @ np.diag(powers) @ Vt


def step(W, G, state, *, lr, weight_decay, momentum, nesterov=True, c=2 / 3, size="polar"):
    m, n = W.shape
    D = direction(ema(G, state, momentum, nesterov), c, size)
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * D
