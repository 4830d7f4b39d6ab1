"""Histories like those of real runs, made up from a random generator: for looking at reports."""

import math
from dataclasses import dataclass, replace

import numpy as np

from polarlight.lab.train.history import History

THRESHOLDS = ("0.01", "0.1", "0.25")


@dataclass(frozen=True)
class Kind:
    """Behaviour of an optimizer in generated histories."""

    loss: float
    rate: float
    optimizer_ms: float
    dying: float  # share of rows that starve by the end
    unevenness: float  # sigma of the log shares of the rest
    evened: bool = False  # rows are made equal after the map
    spectrum: float = 0.02  # sigma of the log singular values


KINDS = {
    "adamw": Kind(1.66, 60, 0.9, 0.0, 0.5, spectrum=1.3),
    "muon": Kind(1.57, 42, 3.1, 0.27, 0.5, spectrum=0.12),
    "normuon": Kind(1.552, 40, 3.6, 0.22, 0.4, evened=True, spectrum=0.25),
    "aurora": Kind(1.543, 39, 5.4, 0.0, 0.1, spectrum=0.12),
}
OTHER = Kind(1.56, 41, 4.0, 0.1, 0.4, spectrum=0.15)


def fake_runs(labels=tuple(KINDS), seeds=3, **options):
    return [fake_run(label, seed, **options) for label in labels for seed in range(seeds)]


def fake_run(label, seed, *, steps=300, layers=4, rows=768, neurons=True, end="finished"):
    """`end` is "finished", "unfinished" or the reason why the run stopped, at 60 % of the steps."""
    rng = np.random.default_rng([seed, *label.encode()])
    luck = np.random.default_rng([*label.encode()]).random()
    kind = KINDS.get(label) or replace(OTHER, loss=1.53 + 0.2 * luck**2)
    reached = steps if end == "finished" else round(0.6 * steps)
    own = {"label": label, "seed": seed, "lr": 0.003 if label == "adamw" else 0.02}
    run = History(
        label, seed, {"plan": {"width": 192, "steps": steps, "kv_heads": None}, "run": own}
    )
    floor = kind.loss + 0.006 * rng.standard_normal()
    _add_steps(run, rng, kind, floor, reached, end)
    for step in range(25, reached + 1, 25):
        run.add(
            {"kind": "validation", "step": step, "loss": _loss(kind, floor, step), "seconds": 1.0}
        )
    if neurons:
        for step in [*range(1, reached, 25), reached]:
            full = step == reached and end == "finished"
            looked = _layers(rng, kind, min(1.0, step / (0.4 * steps)), layers, rows, full)
            run.add({"kind": "neurons", "step": step, "layers": looked})
            run.add({"kind": "activations", "step": step, "layers": _said(rng, kind, layers)})
    last = {"kind": "finished"} if end == "finished" else {"kind": "stopped", "reason": end}
    if end != "unfinished":
        run.add({**last, "step": reached})
    return run


def _loss(kind, floor, step):
    return floor + 3.9 * math.exp(-step / kind.rate) + 0.3 * math.exp(-step / (4 * kind.rate))


def _add_steps(run, rng, kind, floor, reached, end):
    seconds = 0.0
    for step in [1, *range(5, reached + 1, 5)]:
        span = 1 if step == 1 else min(5, step - 1)
        slow = 12.0 if step == 1 else 1.0
        ms = {"data": 0.4, "forward_backward": 21.0, "optimizer": kind.optimizer_ms}
        time = {part: span * slow * t * rng.uniform(0.95, 1.1) / 1e3 for part, t in ms.items()}
        seconds += sum(time.values())
        loss = _loss(kind, floor, step) + 0.05 * rng.standard_normal()
        if end not in ("finished", "unfinished") and step > reached - 40:
            loss += math.exp((step - reached + 40) / 8)
        run.add({"kind": "step", "step": step, "loss": loss, "lr": 0.02, "tokens": 8192 * step,
                 "seconds": seconds, "time": time})  # fmt: skip
    if end not in ("finished", "unfinished"):
        run.steps[-1]["loss"] = math.nan


def _layers(rng, kind, progress, layers, rows, full):
    names = [f"blocks.{i // 2}.mlp.{'up' if i % 2 else 'gate'}_proj.weight" for i in range(layers)]
    return {name: _layer(rng, kind, progress, rows, full) for name in names}


def _layer(rng, kind, progress, rows, full):
    momentum = _shares(rng, rows, kind.dying * progress * rng.uniform(0.8, 1.2), kind.unevenness)
    momentum = np.minimum(momentum, 4.0)
    update = momentum**0.04 if kind.evened else momentum * np.exp(0.05 * rng.standard_normal(rows))
    update = update / update.mean()
    record = {
        "update": _summary(update),
        "momentum": _summary(momentum),
        "row_norm_spread": float(np.sqrt(update).std() / np.sqrt(update).mean()),
    }
    record |= _of_the_matrix(rng, kind)
    if full:
        sigma = np.exp(kind.spectrum * rng.standard_normal(rows // 4))
        record["update"]["shares"] = update.tolist()
        record["momentum"]["shares"] = momentum.tolist()
        record["singular_values"] = np.sort(sigma / np.sqrt((sigma**2).mean()))[::-1].tolist()
    return record


def _of_the_matrix(rng, kind):
    """The readings beside the shares; those of singular values from every other matrix."""
    record = {
        "pair": {
            name: dict.fromkeys(THRESHOLDS, kind.dying / 2) for name in ("update", "momentum")
        },
        "weight": {"row_norm_spread": 0.1 + kind.dying, "rms": 0.07},
        "rms": 0.2,
        "ratio": 0.01 * rng.uniform(0.9, 1.1),
        "cosine": 0.3,
    }
    if rng.random() < 0.5:
        record |= {"orthogonality": kind.spectrum, "alignment": 1.0, "stable_rank": 40.0}
        record["weight"]["stable_rank"] = 30.0
        levels = {"0": -2, "0.1": -1.3, "0.5": 0, "0.9": 1.3, "1": 2}
        record["quantiles"] = {q: math.exp(z * kind.spectrum) for q, z in levels.items()}
    return record


def _said(rng, kind, layers):
    """Generate activation records, layer by layer."""
    record = {
        "mean": 0.1,
        "magnitude": {"0.1": 0.4, "0.5": 0.9, "0.9": 1.6},
        "dead": {"0.01": 0.0, "0.1": kind.dying * rng.uniform(0.4, 0.5)},
        "gate": {"closed": 0.02, "open": 0.01, "always_closed": 0.0},
    }
    return {f"blocks.{i}.mlp.down_proj": record for i in range(layers // 2 or 1)}


def _shares(rng, rows, dying, unevenness):
    shares = np.exp(unevenness * rng.standard_normal(rows))
    dead = rng.random(rows) < dying
    shares[dead] = np.exp(-4.6 + 1.2 * rng.standard_normal(dead.sum()))
    return shares / shares.mean()


def _summary(shares):
    return {
        "starved": {t: float((shares < float(t)).mean()) for t in THRESHOLDS},
        "spread": float(shares.std() / shares.mean()),
        "min": float(shares.min()),
        "effective": float(shares.mean() ** 2 / (shares**2).mean()),
        "ever": {t: float((shares < float(t)).mean()) for t in THRESHOLDS},
        "stayed": {t: 0.9 * float((shares < float(t)).mean()) for t in THRESHOLDS},
    }


ABOUT = {
    "title": "Four optimizers on tiny Shakespeare",
    "command": "polarlight compare --optimizers adamw,muon,normuon,aurora --seeds 3 --steps 300",
    "settings": {
        "batch": {"sequences": 32, "length": 256},
        "schedule": {"warmup": 0.05, "decay": 0.5},
        "learning_rates": {"adamw": 0.003, "muon": 0.02, "normuon": 0.02, "aurora": 0.02},
        "validation_every": 25,
    },
    "model": {"layers": 4, "width": 192, "heads": 6, "hidden": 768, "parameters": 2_408_064},
    "data": {
        "name": "tiny Shakespeare",
        "fingerprint": "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "train_tokens": 1_003_854,
        "validation_tokens": 111_540,
    },
    "versions": {"polarlight": "0.1.0", "torch": "2.11.0", "python": "3.11.9"},
    "hardware": {"device": "cpu", "threads": 4},
    "explain": {
        label: f"blocks.0.mlp.gate_proj.weight  gate_up    {label:<8} whole  lr 0.02\n"
        "embed.weight                   embedding  adamw    -      lr 0.003\n"
        for label in KINDS
    },
    "note": ["an unknown key", "is shown too"],
}
