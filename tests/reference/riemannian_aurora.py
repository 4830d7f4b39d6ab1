"""Riemannian Aurora: ascent of <N, U> where U'U = I and every row has norm sqrt(n/m).

    B = sym(U'N),   P = UU',   h = diag(P),   q_i = <N_i, U_i> - <(UB)_i, U_i>
    (diag(h) - P o P) l = q,   Z = N - U (B - U' diag(l) U) - diag(l) U
    U <- retract(U + eta Z);   retract twice: rows to norm sqrt(n/m), then polar

U starts at polar(N), and N is divided by its mean singular value, so that eta has no unit. The
system is singular (constants are its kernel): the solution of least norm, by pseudo-inverse.

Source: Tilde Research, Aurora release (2026-05); arXiv 2606.27715, algorithm 4; 3 steps, eta = 0.1.
The release has n/m + shift where the projection onto the tangent space has diag(h), as here.
"""

import numpy as np

from tests.reference.momentum import ema
from tests.reference.polar import polar


def laplacian(U):
    P = U @ U.T
    return np.diag(np.diag(P)) - P * P


def multipliers(N, U):
    B = (U.T @ N + N.T @ U) / 2
    q = np.sum((N - U @ B) * U, axis=1)
    return np.linalg.pinv(laplacian(U), rcond=1e-10, hermitian=True) @ q


def tangent(N, U):
    diagonal = np.diag(multipliers(N, U))
    B = (U.T @ N + N.T @ U) / 2
    return N - U @ (B - U.T @ diagonal @ U) - diagonal @ U


def balanced(N, steps=3, step_size=0.1):
    m, n = N.shape
    N = N / np.mean(np.linalg.svd(N, compute_uv=False))
    U = polar(N)
    for _ in range(steps):
        U = U + step_size * tangent(N, U)
        for _ in range(2):
            U = polar(np.sqrt(n / m) * U / np.linalg.norm(U, axis=1, keepdims=True))
    return U


def step(W, G, state, *, lr, weight_decay, momentum, nesterov=True, **iteration):
    m, n = W.shape
    N = ema(G, state, momentum, nesterov)
    U = balanced(N, **iteration) if m > n else polar(N)
    return (1 - lr * weight_decay) * W - lr * np.sqrt(max(1, m / n)) * U
