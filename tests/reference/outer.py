"""Rounds of workers and one outer step.

    D = sum_k w_k (W - W_k),   u <- b u + e D,   W <- W - b u - e D          (DiLoCo, MuLoCo)

    g = sum_k w_k g_k,   M <- mu M + g,   O = M (M'M + delta s^2 I)^(-1/2),   W <- W - lr O
    with s^2 the mean of the min(m, n) squared singular values of M          (sampled clients)

Source: MuLoCo (2025), arXiv 2505.23725, and its code; (2026), arXiv 2606.01720, with delta relative
to s^2 instead of absolute.
"""

import numpy as np


def nesterov(W, workers, weights, state, *, lr, momentum):
    D = sum(w * (W - W_k) for w, W_k in zip(weights, workers, strict=True))
    state["u"] = momentum * state.get("u", np.zeros_like(W)) + lr * D
    return W - momentum * state["u"] - lr * D


def damped_polar(M, delta):
    U, sigma, Vt = np.linalg.svd(M, full_matrices=False)
    return (U * (sigma / np.sqrt(sigma**2 + delta * np.mean(sigma**2)))) @ Vt


def client_sampled(W, gradients, weights, state, *, lr, momentum, delta):
    g = sum(w * g_k for w, g_k in zip(weights, gradients, strict=True))
    state["M"] = momentum * state.get("M", np.zeros_like(W)) + g
    return W - lr * damped_polar(state["M"], delta)
