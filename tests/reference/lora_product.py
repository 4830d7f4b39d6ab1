"""LoRA's factors as one product: steepest steps under a bound on the product's change.

    dB = polar(M_B P^(-1/2)) P^(-1/2),   dA = Q^(-1/2) polar(Q^(-1/2) M_A),   P = A A',   Q = B' B

Source: the Lagrangian of  max <M_B, dB>  subject to  |dB A|_2 <= 1, by the thin singular value
decomposition A = U S V':  P^(-1/2) = U S^(-1) U'.  Nothing is damped.
"""

import numpy as np

from tests.reference.momentum import ema
from tests.reference.polar import polar


def inverse_root(A):
    """(A A')^(-1/2)."""
    U, s, _ = np.linalg.svd(A, full_matrices=False)
    return U / s @ U.T


def step(A, B, G_A, G_B, state, lr, weight_decay, momentum, nesterov=True):
    M_A = ema(G_A, state.setdefault("A", {}), momentum, nesterov)
    M_B = ema(G_B, state.setdefault("B", {}), momentum, nesterov)
    P, Q = inverse_root(A), inverse_root(B.T)
    factor = lr * np.sqrt(B.shape[0] / A.shape[1]) / 2
    shrink = 1 - lr * weight_decay
    return shrink * A - factor * Q @ polar(Q @ M_A), shrink * B - factor * polar(M_B @ P) @ P
