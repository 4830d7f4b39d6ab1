"""Statistics of the monitors from their definitions: a matrix, a layer, a history of rows.

Leverages are squared row norms of the left singular vectors. A row's share is its part of a total
of m. Shares of the momentum are its leverages times m/n. Quantiles interpolate linearly.

Source: docs/watching.md; leverages, effective neurons and orthogonality error as in the Aurora
blog and paper (arXiv 2606.27715).
"""

import numpy as np

THRESHOLDS = ("0.01", "0.1", "0.25")


def matrix(W, D, M, lr):
    """Every number of one look at tall W, its direction D and momentum M, all [m, n]."""
    m, n = D.shape
    left, sigma_m, _ = np.linalg.svd(M, full_matrices=False)
    update = (D**2).sum(axis=1) / (D**2).sum() * m
    sigma, sigma_w = (np.linalg.svd(X, compute_uv=False) for X in (D, W))
    root = np.sqrt((sigma**2).mean())
    scaled = D.T @ D / root**2
    return {
        "update": shares(update),
        "momentum": shares((left**2).sum(axis=1) * m / n),
        "row_norm_spread": spread(np.linalg.norm(D, axis=1)),
        "weight": {
            "row_norm_spread": spread(np.linalg.norm(W, axis=1)),
            "rms": np.sqrt((W**2).mean()),
            "stable_rank": (sigma_w**2).sum() / sigma_w[0] ** 2,
        },
        "rms": np.sqrt((D**2).mean()),
        "ratio": lr * np.linalg.norm(D) / np.linalg.norm(W),
        "cosine": (D * M).sum() / np.linalg.norm(D) / np.linalg.norm(M),
        "orthogonality": np.linalg.norm(scaled - np.eye(n)) / np.sqrt(n),
        "alignment": (D * M).sum() / root / sigma_m.sum(),
        "stable_rank": (sigma**2).sum() / sigma[0] ** 2,
        "quantiles": {f"{q:g}": np.quantile(sigma / root, q) for q in (0, 0.1, 0.5, 0.9, 1)},
    }


def shares(x):
    """Return statistics of uneven shares, with the participation ratio."""
    return {
        "starved": {t: (x < float(t)).mean() for t in THRESHOLDS},
        "spread": spread(x),
        "min": x.min(),
        "effective": x.sum() ** 2 / (len(x) * (x**2).sum()),
    }


def spread(x):
    return x.std() / x.mean()


def persistence(starved):
    """`ever` and `stayed` after the last of some looks, bool [looks, rows], row by row."""
    ever = stayed = 0
    for row in starved.T:
        if row.any():
            ever += 1
            stayed += row[row.argmax() :].all()
    return ever / starved.shape[1], stayed / starved.shape[1]


def layer(gate, up, x, bias=0.0):
    """A SwiGLU layer's numbers on inputs [tokens, width]; gate and up are [neurons, width]."""
    z = x @ gate.T + bias
    magnitude = np.abs(z / (1 + np.exp(-z)) * (x @ up.T)).mean(axis=0)
    relative = magnitude / magnitude.mean()
    return {
        "mean": magnitude.mean(),
        "magnitude": {f"{q:g}": np.quantile(relative, q) for q in (0.1, 0.5, 0.9)},
        "dead": {t: (relative < float(t)).mean() for t in ("0.01", "0.1")},
        "gate": {
            "closed": (z < -4).mean(),
            "open": (z > 4).mean(),
            "always_closed": (z < -4).all(axis=0).mean(),
        },
    }
