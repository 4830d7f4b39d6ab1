"""PMuon.

    N = EMA momentum,   C <- b C + N'N,   E <- b E + N N'
    C~ = N'N + b C + d I,   E~ likewise,   Q <- qr(C~ Q),   T = Q max(diag(Q' C~ Q), d)^p Q'
    W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) polar(T_E N T_C)

d is a fraction of the mean eigenvalue of the sum, and the first Q are eigenvectors; `state["Q"]`
may hold them before the first step.

Source: result 18 of modded-nanogpt's track 3.
"""

import numpy as np

from tests.reference.momentum import ema
from tests.reference.polar import polar


def powered(S, product, Q, beta, p, floor):
    seen = product + beta * S
    d = floor * np.trace(seen) / len(seen)
    seen = seen + d * np.eye(len(seen))
    Q = np.linalg.qr(seen @ Q)[0]
    values = np.maximum(np.diag(Q.T @ seen @ Q), d)
    return Q * values**p @ Q.T, Q


def step(W, G, state, *, lr, weight_decay, momentum=0.95, beta=0.95, p=-0.3, floor=1e-6):
    m, n = W.shape
    N = ema(G, state, momentum, True)
    products = N @ N.T, N.T @ N
    sums = [beta * S + X for S, X in zip(state.get("S", (0.0, 0.0)), products, strict=True)]
    state["S"] = sums
    state.setdefault("Q", tuple(np.linalg.eigh(X)[1][:, ::-1] for X in products))
    both = zip(sums, products, state["Q"], strict=True)
    (left, QL), (right, QR) = (powered(S, X, Q, beta, p, floor) for S, X, Q in both)
    state["Q"] = QL, QR
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * polar(left @ N @ right)
