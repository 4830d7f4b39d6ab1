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

from tests.reference.leaderboard_matrices import adamw, direction, matrix_step, resized
from tests.reference.leaderboard_schedules import LATE, aux_beta2, aux_numbers, ramp, rates


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
