"""Comparison of optimizers on equal model, data order and initial weights; resumable."""

import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from polarlight import explain
from polarlight.lab.train import history
from polarlight.lab.train.data import Corpus
from polarlight.lab.train.environment import hardware, versions
from polarlight.lab.train.history import History
from polarlight.lab.train.lock import FolderLock
from polarlight.lab.train.loop import Run, device_of, require_fitting
from polarlight.lab.train.model import GPT
from polarlight.lab.train.parallel import ALONE, Team
from polarlight.lab.train.recipes import build, spec_of
from polarlight.lab.train.settings import Plan, Spec

SWEEPABLE = ("lr", "aux_lr", "momentum", "weight_decay")


class Watcher(Protocol):
    """Callback on a comparison; see `display.py`."""

    def follow(self, spec: Spec, record: Mapping[str, Any]) -> None:
        """Handle a record that was written, or read from an earlier session."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs of a comparison, in training order.

    Attributes:
        plan: What the runs share.
        specs: The runs.
        corpus: The data.
        out: Folder of the comparison; every run has one of its own in it.
        team: The processes that train each run together.

    Raises:
        ValueError: If the device cannot be used, or its memory does not suffice.
    """

    plan: Plan
    specs: tuple[Spec, ...]
    corpus: Corpus
    out: Path
    team: Team = ALONE

    def __post_init__(self) -> None:
        require_fitting(self.plan, self.corpus.vocab_size, self.team)

    def folder(self, spec: Spec) -> Path:
        """Return the folder of a run."""
        return self.out / spec.label.replace(" ", "_") / f"seed{spec.seed}"

    def train(self, watcher: Watcher, stop: Callable[[], bool]) -> None:
        """Train unfinished runs in order until `stop()`."""
        for spec in self.specs:
            if stop():
                return
            for record in self._records(spec, stop):
                watcher.follow(spec, record)

    def histories(self) -> list[History]:
        """Return the histories of all runs that have started."""
        folders = map(self.folder, self.specs)
        return [history.load(f) for f in folders if (f / "settings.json").exists()]

    def clear(self) -> None:
        """Delete the folders of these runs.

        Raises:
            FolderInUseError: If another process trains in one of them; none is deleted then.
        """
        folders = [f for f in map(self.folder, self.specs) if (f / "settings.json").exists()]
        locks = [FolderLock(folder) for folder in folders]
        for folder, lock in zip(folders, locks, strict=True):
            shutil.rmtree(folder)
            lock.release()

    def about(self, command: str) -> dict[str, Any]:
        """Return the facts of the report beside the curves."""
        corpus, plan = self.corpus, self.plan
        model = GPT(plan.model(corpus.vocab_size))
        tables = {spec.label: str(explain(build(model, spec))) for spec in self.specs}
        return {
            "title": f"{len(tables)} optimizers on one language model",
            "command": command,
            "model": _sizes(model),
            "data": {
                "name": corpus.name,
                "fingerprint": corpus.fingerprint,
                "unit": corpus.unit,
                "train_tokens": len(corpus.train),
                "validation_tokens": len(corpus.validation),
            },
            "versions": versions(),
            "hardware": hardware(device_of(plan.device)),
            "explain": tables,
        }

    def _records(self, spec: Spec, stop: Callable[[], bool]) -> Iterator[Mapping[str, Any]]:
        folder = self.folder(spec)
        run = Run(spec, self.plan, self.corpus, folder, team=self.team)
        yield from history.read_records(run.metrics) if self.team.leads else ()
        if not run.ended:
            yield from run.records(stop)


def specs(
    optimizers: Sequence[str], seeds: int, sweep: Mapping[str, Sequence[float]]
) -> tuple[Spec, ...]:
    """Return a spec per optimizer, swept value and seed, seeds outermost.

    Raises:
        ValueError: If an optimizer or a swept number is unknown, or seeds is below 1.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be >= 1, got {seeds}")
    for name in sweep:
        if name not in SWEEPABLE:
            raise ValueError(f"cannot sweep {name!r}; choose from {', '.join(SWEEPABLE)}")
    settings = [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]
    return tuple(
        spec_of(name, seed=seed, label=_label(name, numbers), **numbers)
        for seed, name, numbers in product(range(seeds), optimizers, settings)
    )


def _sizes(model: GPT) -> dict[str, int]:
    """Return the numbers of parameters, and of active ones in a mixture of experts."""
    sizes = {"parameters": model.parameter_count()}
    if model.config.is_mixture:
        sizes["active_parameters"] = model.active_parameter_count()
    return sizes


def _label(name: str, numbers: Mapping[str, float]) -> str:
    return " ".join([name, *(f"{key}={value:g}" for key, value in numbers.items())])


@contextmanager
def first_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed; a second one interrupts."""
    pressed: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
