"""A comparison small enough for tests: one layer, a few steps, a few kilobytes of text."""

from pathlib import Path

from polarlight.lab.train.compare import Comparison, specs
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.settings import Plan

PLAN = Plan(
    width=16,
    layers=1,
    heads=2,
    context=16,
    batch=2,
    steps=6,
    warmup=2,
    validate_every=3,
    validation_tokens=64,
    log_every=2,
    neurons_every=2,
    checkpoint_every=2,
    precision="fp32",
)


def corpus(folder: Path):
    """A text file's corpus."""
    path = folder / "text.txt"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text("".join(f"line {i} of {i * i % 97}\n" for i in range(400)))
    return load_corpus(path)


def comparison(folder: Path, plan=PLAN, optimizers=("adamw", "aurora"), seeds=1, sweep=None):
    """The runs under `folder/out`."""
    return Comparison(plan, specs(optimizers, seeds, sweep or {}), corpus(folder), folder / "out")


class Silent:
    """A watcher that keeps what it is told."""

    def __init__(self):
        self.seen = []

    def follow(self, spec, record):
        self.seen.append((spec.label, record))


def train(runs, stop=lambda: False):
    """Train the runs; return the records that a watcher received."""
    watcher = Silent()
    runs.train(watcher, stop)
    return watcher.seen
