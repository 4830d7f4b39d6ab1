"""Polar factor.

    M = U S V',   polar(M) = U V'

Source: thin singular value decomposition; Higham, "Functions of Matrices" (2008), chapter 8.
"""

import numpy as np


def polar(M):
    U, _, Vt = np.linalg.svd(M, full_matrices=False)
    return U @ Vt
