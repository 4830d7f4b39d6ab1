"""SOAP-Muon.

First gradient: U = polar(N); L = (1 - b) G G', R = (1 - b) G' G, Q_L and Q_R their eigenvectors,
largest eigenvalue first. Then, k = 1, 2, ...:

    Y = Q_L' N Q_R,   V <- b V + (1 - b) Y^2,   S = Q_L (Y / max(sqrt(V), floor rms)) Q_R'
    S <- S |N| / |S|;  with a trust gate  S <- N + gate (S - N), S <- S |N| / |S|;   U = polar(S)
    L <- b L + (1 - b) G G',   R likewise
    if k % f == 0: columns of Q and entries of V ordered by diag(Q' L Q), Q <- qr(L Q)

    gate = clip(clip((cos(S, N) - 0.2) / 0.8) clip(cos(S, G) / cos(N, G)), low, high)

Eigenvectors of a singular factor are not unique: `state["Q"]` may hold them before the first step.

Source: results 14 to 46 of modded-nanogpt's track 3.
"""

import numpy as np

from tests.reference.contra_muon import schatten4
from tests.reference.momentum import ema
from tests.reference.polar import polar


def eigenvectors(S):
    return np.linalg.eigh(S)[1][:, ::-1]


def preconditioned(
    N, G, state, *, beta=0.9, every=10, floor=0.0, blend=1.0, gate=None, norm=schatten4
):
    """S of one step; factors and bases follow."""
    S, first = N, "V" not in state
    if not first:
        QL, QR = state["Q"]
        Y = QL.T @ N @ QR
        V = state["V"] = beta * state["V"] + (1 - beta) * Y**2
        S = QL @ (Y / np.maximum(np.sqrt(V), floor * np.sqrt(V.mean()))) @ QR.T
        S = blend * S + (1 - blend) * N
        S = S * norm(N) / norm(S)
        if gate is not None:
            S = N + gated(S, N, G, *gate(state["k"])) * (S - N)
            S = S * norm(N) / norm(S)
    state["L"] = beta * state.get("L", 0.0) + (1 - beta) * G @ G.T
    state["R"] = beta * state.get("R", 0.0) + (1 - beta) * G.T @ G
    if first:
        state.setdefault("Q", (eigenvectors(state["L"]), eigenvectors(state["R"])))
        state.update(k=0, V=np.zeros_like(N))
    elif state["k"] % every == 0:
        refresh(state)
    state["k"] += 1
    return S


def refresh(state):
    (QL, QR), L, R = state["Q"], state["L"], state["R"]
    rows = np.argsort(-np.diag(QL.T @ L @ QL))
    columns = np.argsort(-np.diag(QR.T @ R @ QR))
    state["V"] = state["V"][rows][:, columns]
    state["Q"] = np.linalg.qr(L @ QL[:, rows])[0], np.linalg.qr(R @ QR[:, columns])[0]


def cosine(X, Y):
    return np.sum(X * Y) / np.linalg.norm(X) / np.linalg.norm(Y)


def gated(S, N, G, low, high):
    agreement = np.clip((cosine(S, N) - 0.2) / 0.8, 0, 1)
    gain = np.clip(cosine(S, G) / max(cosine(N, G), 1e-8), 0, 1)
    return np.clip(agreement * gain, low, high)


def step(W, G, state, *, lr, weight_decay, momentum=0.95, **numbers):
    m, n = W.shape
    S = preconditioned(ema(G, state, momentum, True), G, state, **numbers)
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * polar(S)
