"""Results of modded-nanoGPT's track 3, step by step, for given gradients.

Written from the formulas and constants of the benchmark's scripts. In a step t, counted from 0:

    lookahead   W <- W + beta rate z
    AdamW       embed, head, vectors
    matrices    N = Nesterov momentum -> SOAP -> polar, tempered, contra, soft -> even rows ->
                sqrt(max(1, m/n)) -> brake -> floor -> W <- (1 - lr wd) W - lr U -> pin -> decay
    after       anchor, outer Nesterov, lookahead's average, averages for evaluation

`clock` maps steps of the full run to those of this one. Bases of SOAP are those that the caller
gives after the first step, since eigenvectors of singular factors are not unique.
"""

from functools import partial

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
from tests.reference.soft_muon import soft as soft_polar
from tests.reference.tempered_muon import tempered as temper

TOKENS = 524_288
BALL = (4, 5, 8, 13, 19, 25, 27, 33, 37)
POWERCOOL = {20: 3105, 29: 3105, 30: 3050, 32: 3105, 38: 3020, 40: 2980, 42: 2980}
POWERCOOL |= {34: 3050, 43: 2950}
POWERCOOL |= {41: 2980, 44: 2900, 45: 2900, 46: 2900}
PRUNED = (30, 34, 38, 40, 41, 42, 43)
MUOWN = (23, 31)
MUOWN_TARGET = {23: {"down": 10 / 3}, 31: {"down": 10 / 3, "output": 1.5, "fc": 1.5}}
LATE = (44, 45, 46)
AURORA_WIDE = PRUNED
MATRIX_LR = {1: (0.02, 0.01), 2: (0.0015, 0.1), 3: (0.025, 0.0125), 6: (0.025, 0.025)}
MATRIX_LR |= {7: (0.10, 0.0125), 10: (0.035, 0.025), 12: (0.035, 0.025), 18: (0.035, 0.025)}
MATRIX_LR |= {21: (0.0015, 0.2), 22: (0.03, 0.015), 26: (0.04, 0.025), 28: (0.02, 0.025)}
MATRIX_LR |= {15: (0.02, 0.025), 23: (0.00325, 0.0), 31: (0.0045, 0.0)}
KIND_LR = {"output": (0.025, 0.025), "fc": (0.03, 0.0375), "down": (0.03, 0.025)}
MATRIX_LR |= {35: (0.01, 0.1), 36: (0.025, 0.05), 39: (0.035, 0.025)}
LENGTH = {1: 3600, 2: 5625, 3: 3500, 4: 4875, 5: 3325, 6: 3375, 7: 3325, 8: 3275, 9: 3250, 10: 3300}
LENGTH |= {11: 3225, 12: 3350, 13: 3210, 14: 3175, 16: 3175, 17: 3200, 18: 3250, 19: 3125, 21: 4150}
LENGTH |= {22: 8500, 24: 3175, 25: 3125, 26: 3125, 27: 3200, 28: 3200, 35: 3375, 36: 3250, 37: 3250}
LENGTH |= {15: 3300, 23: 3165, 31: 3045, 33: 3400, 39: 3150}


def ramp(t, a, b):
    return min(max((t - a) / (b - a), 0.0), 1.0)


def linear(t, T, f):
    return min(1.0, (1 - t / T) / f)


def power(t, T, f, q, floor):
    return floor + (1 - floor) * min(max((1 - t / T) / f, 0), 1) ** q


def power_cool(k, t, clock):
    end = 3010 if k == 43 and t >= clock(2600) else POWERCOOL[k]
    left = max((clock(end) - t) / clock.ratio, 0)
    return tuple(min(1.0, (left / length) ** 1.2) for length in (2386.4, 1413.0))


def rates(k, t, clock):
    """Factors on the rates of matrices and of the rest."""
    if k in POWERCOOL:
        return power_cool(k, t, clock)
    T = clock(LENGTH[k])
    if k == 2:
        both = linear(t, T, 0.7) * min(1, (t + 1) / max(clock(250), 1))
        return both, both
    if k == 4:
        warm = max(clock(250), 1)
        return (t / warm if t < warm else 1 - t / T), linear(t, T, 0.4)
    if k == 25:
        return power(t, T, 1, 1.5, 0.017), power(t, T, 0.4, 1.5, 0.04)
    if k == 27:
        return power(t, T, 1, 1.25, 0), linear(t, clock(3125), 0.4)
    if k in BALL:
        aux = power(t, T, 0.5, 1, 0.1) if k == 33 else linear(t, T, 0.85 if k == 37 else 0.4)
        return 1 - t / T, aux
    if k in MUOWN:
        return (power(t, T, 0.7, 0.9, 0),) * 2
    return tuple(linear(t, T, fall) for fall in ((0.8, 0.4) if k == 24 else (0.7, 0.7)))


def aux_numbers(k):
    """Rates of embed, head and vectors, and weight decay."""
    if k == 36:
        return (0.7, 0.004, 0.015), 0.001
    if k in MUOWN:
        return (0.6, 0.009375, 0.03), 0.0
    return ((0.91, 0.0064, 0.0195), 0.001) if k == 37 else ((0.3, 1 / 320, 0.01), 0.0)


def aux_beta2(k, kind):
    if k not in PRUNED + LATE:
        return 0.95
    if k in LATE:
        return {"biases": 0.997, "output_biases": 0.9965}.get(kind, 0.99)
    return 0.99


def adamw(w, g, state, t, lr, wd, betas, eps, corrected=True):
    state["m"] = betas[0] * state.get("m", 0.0) + (1 - betas[0]) * g
    state["v"] = betas[1] * state.get("v", 0.0) + (1 - betas[1]) * g**2
    one, two = (1 - b ** (t + 1) if corrected else 1.0 for b in betas)
    return (1 - lr * wd) * w - lr * state["m"] / one / (np.sqrt(state["v"] / two) + eps)


def momentum_of(k, t, clock):
    if k == 31:
        return 0.946
    nominal = {
        30: 3020,
        34: 3020,
        43: 2850,
        38: 2900,
        40: 2900,
        41: 2900,
        42: 2900,
        44: 2900,
        45: 2900,
        46: 2900,
    }.get(k)
    if nominal is None:
        return 0.0 if k == 22 else 0.95
    c = 200 if k in LATE else 100
    warm, end = max(clock(300), 1), clock(nominal - c)
    end = max(end, warm + 1)
    last = max(clock(nominal), end + 1)
    return 0.85 + 0.1 * ramp(t, 0, warm) - 0.1 * ramp(t, end, last)


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


def matrix_lr(k, kind):
    lr, wd = MATRIX_LR.get(k, (0.018 if k in BALL else 0.0375, 0.0))
    lr, wd = KIND_LR.get(kind, (lr, wd)) if k == 15 else (lr, wd)
    return (0.025 if k == 33 else lr), wd


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


def pulsed(weights, kept, kinds, step, clock):
    """Result 43's changes of weights at fixed steps of the full run."""
    w = dict(weights)
    inner = [n for n in w if kinds[n] != "embed"]
    other = [n for n in w if kinds[n] not in (*AUX, "value", "output")]
    if step == clock(2000):
        kept["w2000"] = w
    if step == clock(2400):
        w |= {n: w[n] - 0.005 * (w[n] - kept["w2000"][n]) for n in other}
        kept["w2400"] = dict(w)
    if step == clock(2650):
        kept["w2650"] = dict(w)
    if step == clock(2750):
        kept["trail"] = {n: w[n] - kept["w2650"][n] for n in inner}
        w |= {n: w[n] - 0.04 * kept["trail"][n] for n in inner}
        kept["w2750"] = dict(w)
    if step == clock(2850):
        w |= {n: w[n] - 0.12 * (w[n] - kept["w2750"][n] + kept["trail"][n]) for n in inner}
        for n in other:
            v = w[n] - kept["w2750"][n]
            a = v - (kept["w2750"][n] - kept["w2650"][n])
            h = a - np.sum(a * v) / np.sum(v * v) * v
            w[n] = w[n] + 0.01 * h * np.linalg.norm(v) / np.linalg.norm(h)
        w |= {n: w[n] + 0.08 * (kept["w2400"][n] - w[n]) for n in inner}
    return w


def run(k, weights, kinds, gradient, steps, clock, bases, probes=None, inputs=None):
    """Weights by name after some steps, and those for evaluation.

    `probes(name, t)` are the random numbers of result 33, `inputs(name, t)` those of a layer.
    """
    first = {name: w.copy() for name, w in weights.items()}
    now = {name: w.copy() for name, w in weights.items()}
    states = {name: {"Q": bases(name)} if bases(name) else {} for name in weights}
    for name, state in states.items() if k == 33 else ():
        state["probes"] = partial(probes, name)
    for name, state in states.items():
        state["inputs"] = partial(inputs, name) if inputs else None
    z = {name: np.zeros_like(w) for name, w in weights.items()}
    outer = {name: np.zeros_like(w) for name, w in weights.items()}
    before, anchors, rate, kept = first, first, 1.0, {}
    for t in range(steps):
        beta = looks_ahead(k, t, clock) * rate
        now = {name: w + beta * z[name] for name, w in now.items()}
        factors = rates(k, t, clock)
        if k in (41, 43):
            couple(k, now, kinds, gradient, states, t, clock)
        now = {
            name: stepped(k, kinds[name], w, gradient(name, t), states[name], t, clock, factors)
            + pull(k, kinds[name], t, clock) * (first[name] - w)
            for name, w in now.items()
        }
        if k == 13 and (t + 1) % max(clock(30), 1) == 0:
            outer = {n: 0.5 * outer[n] + 0.7 * (anchors[n] - w) for n, w in now.items()}
            D = {n: anchors[n] - w for n, w in now.items()}
            now = {n: anchors[n] - 0.5 * outer[n] - 0.7 * D[n] for n in now}
            anchors = now
        changed = {name: w - before[name] for name, w in now.items()}
        z = {name: 0.99 * z[name] + 0.01 * changed[name] for name in now}
        before, rate = now, factors[1]
        if k == 43:
            now = pulsed(now, kept, kinds, t + 1, clock)
        kept = seen(k, kept, now, changed, kinds, t + 1, clock)
    return now, readout(kept, now, kinds, steps, clock, k)


def couple(k, weights, kinds, gradient, states, t, clock, heads=2, lam=1e-3):
    """Directions of value and output projections, made for each other head by head."""
    names = {kind: name for name, kind in kinds.items() if kind in ("value", "output")}
    dV, dO = (
        direction(k, kind, gradient(names[kind], t), states[names[kind]], t, clock)
        for kind in ("value", "output")
    )
    V, W = weights[names["value"]], weights[names["output"]]
    h = len(V) // heads
    rows = [slice(i * h, (i + 1) * h) for i in range(heads)]
    a, b = dV.copy(), dO.copy()
    for r in rows:
        a[r] *= (np.sum(W[:, r] ** 2) / h + lam) ** -0.5
        b[:, r] *= (np.sum(V[r] ** 2) / h + lam) ** -0.5
    a, b = resized(a, dV, np.linalg.norm), resized(b, dO, np.linalg.norm)
    for r in rows:
        size = np.sum(V[r] ** 2) + np.sum(W[:, r] ** 2) + 2 * h * lam
        x = (np.sum(V[r] * a[r]) - np.sum(W[:, r] * b[:, r])) / size
        a[r], b[:, r] = a[r] - x * V[r], b[:, r] + x * W[:, r]
    states[names["value"]]["coupled"], states[names["output"]]["coupled"] = a, b


AUX = ("embed", "head", "gains", "biases", "output_biases")


def looks_ahead(k, t, clock):
    """The length of the lookahead, 0 outside of its steps."""
    if k not in (39, 40, 41, 42, 43, *LATE):
        return 0.0
    beta, a, b = (0.6, 500, 2400) if k == 39 else (0.3, 300, 1900 if k == 43 else 1950)
    return beta if clock(a) <= t < clock(b) else 0.0


def pull(k, kind, t, clock):
    """The strength of result 32's anchor."""
    if k != 32 or kind in AUX:
        return 0.0
    return (1 + np.cos(np.pi * ramp(t / clock.ratio, 2000, 2750))) / 2 / (t + 2)


def stepped(k, kind, W, G, state, t, clock, factors):
    if kind not in AUX:
        return matrix_step(k, kind, W, G, state, t, clock, factors[0])
    lrs, wd = aux_numbers(k)
    lr = lrs[{"embed": 0, "head": 1}.get(kind, 2)] * factors[1]
    corrected = k not in LATE or kind in ("embed", "head")
    return adamw(W, G, state, t, lr, wd, (0.8, aux_beta2(k, kind)), 1e-10, corrected)


def seen(k, kept, weights, changed, kinds, step, clock):
    """Return the weights for evaluation: tail average, update average, reference."""
    if k in (45, 46):
        start = max(clock(2000 if k == 45 else 2400), 1)
        inner = {name: w for name, w in weights.items() if kinds[name] != "embed"}
        if step == start:
            kept["average"] = inner
        elif "average" in kept:
            tau, e = max(150 * clock.ratio, 1), kept["average"]
            kept["average"] = {name: e[name] + (w - e[name]) / tau for name, w in inner.items()}
    if k == 38 and step >= clock(2500):
        d = kept.get("d", {name: 0.0 for name in weights})
        kept["d"] = {name: 0.9 * d[name] + 0.1 * changed[name] for name in weights}
    if k in (38, 42) and step == max(clock(2375), 1):
        kept["reference"] = weights
    return kept


def readout(kept, weights, kinds, step, clock, k):
    """The weights for evaluation."""
    read = dict(weights)
    for name, e in kept.get("average", {}).items():
        read[name] = 0.4 * weights[name] + 0.6 * e
    for name, d in kept.get("d", {}).items():
        if kinds[name] not in AUX:
            w = weights[name]
            read[name] = w - 6 * d * min(1, 0.01 * np.linalg.norm(w) / np.linalg.norm(d))
    if "reference" in kept and step >= clock(2850 if k == 42 else 2900):
        read = {name: 0.925 * w + 0.075 * kept["reference"][name] for name, w in read.items()}
    return read
