"""Steps of AdamW and of single matrices in the results of `leaderboard.py`."""

import numpy as np

from tests.reference import (
    dyn_muon,
    grafted_shampoo,
    pmuon,
    psgd_kron,
    sink_soap,
    soap_h,
    soap_muon,
)
from tests.reference.contra_muon import power_iterations, schatten4
from tests.reference.kl_soap import step as kl_soap_step
from tests.reference.leaderboard_schedules import (
    BALL,
    LATE,
    MUOWN,
    POWERCOOL,
    PRUNED,
    matrix_lr,
    momentum_of,
    ramp,
)
from tests.reference.soft_muon import soft as soft_polar
from tests.reference.tempered_muon import tempered as temper

TOKENS = 524_288
MUOWN_TARGET = {23: {"down": 10 / 3}, 31: {"down": 10 / 3, "output": 1.5, "fc": 1.5}}
AURORA_WIDE = PRUNED


def adamw(w, g, state, t, lr, wd, betas, eps, corrected=True):
    state["m"] = betas[0] * state.get("m", 0.0) + (1 - betas[0]) * g
    state["v"] = betas[1] * state.get("v", 0.0) + (1 - betas[1]) * g**2
    one, two = (1 - b ** (t + 1) if corrected else 1.0 for b in betas)
    return (1 - lr * wd) * w - lr * state["m"] / one / (np.sqrt(state["v"] / two) + eps)


def quintics(X, norm):
    """Twelve steps of 2 X - 1.5 X X' X + 0.5 (X X')^2 X."""
    X = X / norm(X)
    for _ in range(12):
        S = X @ X.T
        X = 2 * X - 1.5 * S @ X + 0.5 * S @ S @ X
    return X


def aurora(X, rounds, exponent, norm):
    """Rows of a tall matrix of equal leverage, by rescaling."""
    p, q = X.shape
    D = 1 / np.linalg.norm(X, axis=1, keepdims=True)
    U = quintics(D * X, norm)
    for _ in range(rounds - 1):
        D = D * ((q / p) / np.sum(U**2, axis=1, keepdims=True)) ** exponent
        U = quintics(D * X, norm)
    return U


def polar(k, X):
    norm = schatten4 if k in POWERCOOL else np.linalg.norm
    m, n = X.shape
    if k == 17 and m != n:
        return aurora(X, 2, 0.5, norm) if m > n else aurora(X.T, 2, 0.5, norm).T
    if k in MUOWN:
        left, _, right = np.linalg.svd(X, full_matrices=False)
        return left @ right
    if k in AURORA_WIDE and m < n:
        return aurora(X.T, 3, 0.25, norm).T
    return quintics(X, norm)


def preconditioned(k, kind, N, G, state, clock):
    """SOAP where the result has it."""

    def gate(t):
        low = 0.45 * (1 - ramp(t, clock(1375), max(clock(1625), clock(1375) + 1)))
        return low, 0.85 + 0.15 * ramp(t, clock(1624), max(clock(1625), clock(1624) + 1))

    mlp = kind in ("fc", "down")
    if k in (14, 16) and mlp:
        return soap_muon.preconditioned(N, G, state, norm=np.linalg.norm)
    if k == 16 and kind == "output":
        return soap_muon.preconditioned(N, G, state, floor=0.2, gate=gate, norm=np.linalg.norm)
    if k in (20, 29, 32, *PRUNED) and mlp:
        return soap_muon.preconditioned(N, G, state)
    if k in (20, 29, 32, *PRUNED) and kind == "value":
        return soap_muon.preconditioned(N, G, state, floor=0.55, blend=0.95)
    if k in LATE:
        return soap_muon.preconditioned(
            N, G, state, every=1, gate=gate if kind == "output" else None
        )
    return N


def resized(U, like, norm):
    return U * norm(like) / norm(U)


def bent(k, X, t, clock):
    """Polar factor, tempered, minus a part of the momentum, towards the soft one."""
    U = polar(k, X)
    if k == 38:
        rho = 0.05 * ramp(t, clock(2600), max(clock(2800), clock(2600) + 1))
        U = temper(X, U, rho)
    if k in (11, 14, 16, 17, 24):
        C = U - 0.2 * X / power_iterations(X)
        U = resized(C, U, np.linalg.norm)
    if k == 31:
        c = 0.325 * (1 - ramp(t, 0, max(clock(1925), 1)))
        U = resized(U - c * X / power_iterations(X), U, np.linalg.norm)
    last = {
        34: 2500,
        43: 2500,
        20: 2000,
        29: 2000,
        32: 2000,
        30: 2500,
        40: 2500,
        41: 2500,
        42: 2500,
        38: 2750,
    }.get(k)
    if last is not None:
        C = U - 0.2 * (1 - ramp(t, 0, max(clock(last), 1))) * X / schatten4(X)
        U = resized(C, U, schatten4)
    if k in (20, 29, 32):
        b = 0.8 * ramp(t, clock(2500), max(clock(2908), clock(2500) + 1))
        U = resized(U + b * (soft_polar(X) - U), U, schatten4)
    return U


def even(k, U, state):
    """NorMuon-lite: rows, or columns of wide matrices."""
    if k not in (8, 9, 10, 11, 13, 14, 16, 20, 24, 29, 31, 32):
        return U
    axis = 1 if U.shape[0] >= U.shape[1] else 0
    b = 0.8 if k == 31 else 0.95
    s = state["s"] = b * state.get("s", 0.0) + (1 - b) * np.mean(U**2, axis=axis, keepdims=True)
    X = U / np.sqrt(s)
    if k in (8, 13):
        return X
    return resized(X, U, schatten4 if k in POWERCOOL else np.linalg.norm)


def direction(k, kind, G, state, t, clock):
    m, n = G.shape
    asp = 0.2 * np.sqrt(max(m, n)) if k in MUOWN else np.sqrt(max(1, m / n))
    if k == 22:
        return asp * quintics(G, np.linalg.norm)
    if k == 15:
        G = G @ inverse(state, t, clock)
    mu = momentum_of(k, t, clock)
    M = state["M"] = mu * state.get("M", 0.0) + (1 - mu) * G
    N = (1 - mu) * G + mu * M
    if k == 7:
        V = state["V2"] = 0.95 * state.get("V2", 0.0) + 0.05 * G**2
        N = N / np.sqrt(V)
    X = preconditioned(k, kind, N, G, state, clock)
    return asp * even(k, bent(k, X, t, clock), state)


WHOLE = {18, 19, 21, 25, 26, 27, 28, 33, 35}
"""Results with a reference of their own for the matrices."""


def whole_direction(k, G, state, t, clock):
    """The direction of such a rule, as the step from zero at lr 1 without decay."""
    zero, numbers = np.zeros_like(G), {"lr": 1.0, "weight_decay": 0.0}
    if k in (19, 25):
        return -kl_soap_step(zero, G, state, **numbers)
    if k == 33:
        probes = state["probes"]
        return -psgd_kron.step(zero, G, state, probes=probes, **numbers)
    if k == 27:
        return -soap_h.step(zero, G, state, **numbers)
    if k == 21:
        return -grafted_shampoo.step(zero, G, state, every=5, **numbers)
    if k == 35:
        betas = {"betas": (0.9, 0.9), "shampoo_beta": 0.9}
        return -grafted_shampoo.step(zero, G, state, **betas, **numbers)
    numbers["momentum"] = 0.95
    if k == 18:
        return -pmuon.step(zero, G, state, **numbers)
    if k == 26:
        return -sink_soap.step(zero, G, state, **numbers)
    at = 128 * clock.ratio
    return -dyn_muon.step(zero, G, state, unit=TOKENS, middle=at, width=at, **numbers)


def floors(k, W, U, t, clock):
    if k in (20, 29, 32, *PRUNED, 44, 45):
        tau = 0.3825
        if k == 38:
            tau += 0.0175 * ramp(t, clock(2400), max(clock(2800), clock(2400) + 1))
    elif k in (9, 11, 14, 16, 17, 24):
        tau = 0.35
    elif k == 46:
        least = 0.3825 * np.linalg.norm(W, axis=1) / np.linalg.norm(U, axis=1)
        return U * np.maximum(1, least)[:, None]
    else:
        return U
    return U * max(1, tau * np.linalg.norm(W) / np.linalg.norm(U))


def moved(k, W, U, lr, wd, t, clock):
    """The weight after a step along U with everything that the result does to it."""
    norm = np.linalg.norm(W)
    if k in BALL:
        Z = W - lr * norm * U / np.linalg.norm(U)
        return norm * Z / np.linalg.norm(Z)
    pinned = k in (29, *PRUNED, *LATE)
    if pinned and norm > 0:
        o = 0.5
        if k == 38:
            o -= 0.1 * ramp(t, clock(2400), max(clock(2900), clock(2400) + 1))
        inner = np.sum(U * W) / norm**2
        U = U - (1 - o) * min(inner, 0) * W
    U = floors(k, W, U, t, clock)
    Z = (1 - lr * wd) * W - lr * U
    if pinned:
        radius = max(norm - lr * np.sum(U * W) / norm, 1e-8) if norm else 1e-8
        Z = Z * radius / np.linalg.norm(Z)
    if k == 46:
        Z = Z * (1 - lr * 0.025 * (U * W > 0))
    return Z


def matrix_step(k, kind, W, G, state, t, clock, factor):
    lr, wd = matrix_lr(k, kind)
    lr = lr * factor
    if k in MUOWN:
        return muown(k, kind, W, G, state, t, clock, lr)
    if k == 2:
        return adamw(W, G, state, t, lr, wd, (0.9, 0.95), 1e-10)
    if k == 4:
        if lr == 0:
            adamw(W, G, state, t, 0.0, 0.0, (0.9, 0.95), 1e-8)
            return W
        U = W - adamw(W, G, state, t, 1.0, 0.0, (0.9, 0.95), 1e-8)
    elif "coupled" in state:
        U = state.pop("coupled")
    elif k in WHOLE:
        U = whole_direction(k, G, state, t, clock)
        if not U.any():
            return (1 - lr * wd) * W
    else:
        U = direction(k, kind, G, state, t, clock)
    return moved(k, W, U, lr, wd, t, clock)


def inverse(state, t, clock):
    """Inverse covariance of a layer's inputs, seen every 64 steps of the full run."""
    if (t + 1) % max(clock(64), 1) == 0:
        X = state["inputs"](t)
        n = X.shape[1]
        C = state["C"] = 0.95 * state.get("C", 0.001 * np.eye(n)) + 0.05 * X.T @ X / len(X)
        K = C + (0.2 * np.trace(C) / n + 1e-8) * np.eye(n)
        state["K"] = np.linalg.inv(K)
    return state["K"] if "K" in state else np.eye(state["inputs"](t).shape[1])


def muown(k, kind, W, G, state, t, clock, lr):
    """Rows as norm and direction: the first by Adam, the second by Muon."""
    norms = np.linalg.norm(W, axis=1, keepdims=True)
    first = state.setdefault("first", norms)
    g, radius = state.get("g", norms), state.get("radius", norms)
    u = W / g
    dg = np.sum(G * u, axis=1, keepdims=True)
    v = u * radius - lr * direction(k, kind, g / radius * (G - u * dg), state, t, clock)
    state["g"] = g = adamw(g, dg, state.setdefault("adam", {}), t, lr, 0.0, (0.9, 0.95), 1e-8)
    T, q = (clock(3165), 1.2) if k == 23 else (clock(3005), 0.9)
    target = 2.496 * MUOWN_TARGET[k].get(kind, 1.0)
    state["radius"] = first + (target - first) * min(t / (T - 1), 1) ** q
    return g * v / np.linalg.norm(v, axis=1, keepdims=True)
