"""Grafted Shampoo.

    L <- sb L + (1 - sb) G G',   R likewise,   M, V Adam's moments
    M^ = M / (1 - b1^t),   V^ = V / (1 - b2^t),   A = M^ / sqrt(V^)
    every f steps: P_L, P_R = L^(-1/4), R^(-1/4) of the pseudo-inverse
    S = P_L M^ P_R,   W <- (1 - lr wd) W - lr S |A| / |S|;   lr A before there are powers

Source: arXiv 1802.09568, 2002.09018; results 21 and 35 of modded-nanogpt's track 3.
"""

import numpy as np

from tests.reference.shampoo import power


def step(
    W, G, state, *, lr, weight_decay, momentum=None, betas=(0.9, 0.95), shampoo_beta=0.95, every=1
):
    b1, b2 = betas
    t = state["t"] = state.get("t", 0) + 1
    for name, seen, b in (
        ("L", G @ G.T, shampoo_beta),
        ("R", G.T @ G, shampoo_beta),
        ("M", G, b1),
        ("V", G**2, b2),
    ):
        state[name] = b * state.get(name, 0.0) + (1 - b) * seen
    M = state["M"] / (1 - b1**t)
    D = A = M / np.sqrt(state["V"] / (1 - b2**t))
    if t % every == 0:
        state["P"] = power(state["L"], -0.25), power(state["R"], -0.25)
    if "P" in state:
        S = state["P"][0] @ M @ state["P"][1]
        D = S * np.linalg.norm(A) / np.linalg.norm(S)
    return (1 - lr * weight_decay) * W - lr * D
