"""Aurora's problem, solved by two other methods than the library's.

    maximise <N, U>   subject to   U'U = I,  |U_i|^2 = n/m

`balanced`: ascent along the tangent gradient Z with step lengths of Barzilai and Borwein,
    U <- retract(U + a Z),  a = |dU|^2 / |<dU, dZ>|,
where retract repeats {rows to norm sqrt(n/m), polar factor} to rounding. The start is retract(N's
polar factor).

`relaxed`: both constraints as balls, |V|_2 <= 1 and |V_i|^2 <= n/m, which is a convex problem and
bounds the other from above. Where its solution has |V|_F^2 = n it is balanced, and the global
maximum of both. Alternating directions (Douglas, Rachford) on two copies of V.

Source: this library; Barzilai, Borwein (1988); Boyd et al. (2011), section 3.
"""

import numpy as np

from tests.reference.momentum import ema
from tests.reference.polar import polar
from tests.reference.riemannian_aurora import tangent


def retract(U):
    m, n = U.shape
    for _ in range(500):
        norms = np.linalg.norm(U, axis=1, keepdims=True)
        if np.abs(norms * np.sqrt(m / n) - 1).max() < 1e-14:
            break
        U = polar(U / norms)
    return U


def balanced(N, steps=2000, tolerance=1e-10):
    N = N / np.mean(np.linalg.svd(N, compute_uv=False))
    U = retract(polar(N))
    Z, a, best = tangent(N, U), 0.1, U
    for _ in range(steps):
        if np.linalg.norm(Z) < tolerance * np.linalg.norm(N):
            break
        after = retract(U + a * Z)
        gradient = tangent(N, after)
        dU, dZ = after - U, gradient - Z
        a = np.clip(np.sum(dU**2) / (abs(np.sum(dU * dZ)) + 1e-300), 1e-3, 10.0)
        U, Z = after, gradient
        best = U if np.sum(N * U) > np.sum(N * best) else best
    return best


def relaxed(N, steps=5000):
    m, n = N.shape
    N = N / np.mean(np.linalg.svd(N, compute_uv=False))
    V = Y = np.zeros_like(N)
    for _ in range(steps):
        L, s, R = np.linalg.svd(V - Y + N, full_matrices=False)
        X = (L * np.minimum(s, 1)) @ R
        V = X + Y
        V = V * np.minimum(1, np.sqrt(n / m) / np.linalg.norm(V, axis=1, keepdims=True))
        Y = Y + X - V
    return V


def step(W, G, state, *, lr, weight_decay, momentum, nesterov=True):
    m, n = W.shape
    N = ema(G, state, momentum, nesterov)
    U = balanced(N) if m > n else polar(N)
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * U
