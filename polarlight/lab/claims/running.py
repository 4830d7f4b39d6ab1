"""Running a claim: learning rates first, then seeds, each run resumed where it stopped.

A run that is recorded (`store.py`) is not trained again; one that is new is recorded as soon as it
is finished.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from polarlight.diagnostics.activations import ActivationMonitor
from polarlight.diagnostics.neurons import NeuronMonitor
from polarlight.diagnostics.sinks import JsonLines
from polarlight.lab.claims import measures
from polarlight.lab.claims.claim import SWEEP_SEED, Arm, Claim, Task, run_folder, shrunk, spec_for
from polarlight.lab.claims.registry import find
from polarlight.lab.claims.results import about, samples
from polarlight.lab.claims.store import SHIPPED, RunRecord, RunStore, run_setting
from polarlight.lab.train import history
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.data import Corpus
from polarlight.lab.train.environment import hardware, versions
from polarlight.lab.train.loop import Run, device_of
from polarlight.lab.tuning import Search

CPU = "cpu.json"
FURTHER = 2
"""How often a sweep goes on beyond its edge."""

SWEPT = ("loss",)
"""Measures that a run of a sweep is judged by."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Folder, devices and changes with which claims are run.

    Attributes:
        out: Folder of all runs and results.
        data: See `load_corpus`.
        jobs: Runs at a time, each in a process of one thread; 1 stays in this process.
        changes: Entries of the plan that differ from the claim's own.
        seeds: Runs per arm, instead of the claim's own number.
        records: Folder to which finished runs are recorded; None takes `out`.
    """

    out: Path
    data: Path | None = None
    jobs: int = 1
    changes: tuple[tuple[str, Any], ...] = ()
    seeds: int | None = None
    records: Path | None = None

    def of(self, claim: Claim) -> Claim:
        """The claim in this setting."""
        return shrunk(claim, dict(self.changes), self.seeds)

    def store(self) -> RunStore:
        """The runs that are known: shipped ones and those recorded here."""
        return RunStore([SHIPPED, self.records or self.out])


def run_claim(
    claim: Claim, setting: Setting, tell: Callable[[str], None] = lambda words: None
) -> dict[str, Any]:
    """Train the missing runs and return the result, also written to `NAME.json`.

    Args:
        claim: The claim, as registered.
        setting: Where and how.
        tell: Called with a line for every run that is finished.
    """
    claim, store = setting.of(claim), setting.store()
    searches, swept = _searched(claim, setting, store, tell)
    lrs = _chosen(claim, searches)
    tasks = [Task(claim.name, a, lrs[a], seed) for seed in range(claim.seeds) for a in claim.arms]
    found = dict(_recorded(claim, tasks, setting, store, tell))
    arms = {
        label: {
            "lr": lrs[label],
            "sweep": _told(searches[label]) if label in searches else {},
            "samples": samples(
                (r for task, r in found.items() if task.arm == label), claim.measures(label)
            ),
        }
        for label in claim.arms
    }
    result = about(claim, [*swept, *found.values()], dict(setting.changes)) | {"arms": arms}
    path = setting.out / f"{claim.name}.json"
    path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def _searched(
    claim: Claim, setting: Setting, store: RunStore, tell: Callable[[str], None]
) -> tuple[dict[str, Search], list[RunRecord]]:
    """The sweeps of all arms that have one, run side by side, and their records."""
    searches, records = _new_searches(claim), []
    while due := [(label, lr) for label, search in searches.items() for lr in search.due()]:
        tasks = [Task(claim.name, label, lr, SWEEP_SEED) for label, lr in due]
        for task, record in _recorded(claim, tasks, setting, store, tell, SWEPT):
            searches[task.arm].tell(task.lr, record.measures["loss"])
            records.append(record)
    return searches, records


def count_missing(claim: Claim, setting: Setting) -> dict[str, int]:
    """Return how many runs of each arm are not recorded yet, as far as can be told.

    Until a sweep is complete its best rate is unknown: all seeds at that rate count as missing, and
    rates beyond the ends of the sweep do not count.
    """
    claim, store = setting.of(claim), setting.store()
    data = _corpus(setting.data).fingerprint
    searches, missing = _new_searches(claim), dict.fromkeys(claim.arms, 0)
    for label, search in searches.items():
        while not missing[label] and (due := search.due()):
            for lr in due:
                task = Task(claim.name, label, lr, SWEEP_SEED)
                record = _known(claim, task, store, data, SWEPT)
                if record is None:
                    missing[label] += 1
                else:
                    search.tell(lr, record.measures["loss"])
    swept = {label: search for label, search in searches.items() if not missing[label]}
    lrs = _chosen(claim, swept)
    for label in claim.arms:
        chosen = claim.lr_of.get(label, label) in swept or label not in searches
        tasks = [Task(claim.name, label, lrs[label], seed) for seed in range(claim.seeds)]
        known = [_known(claim, task, store, data, claim.measures(label)) for task in tasks]
        missing[label] += known.count(None) if chosen else claim.seeds
    return missing


def _new_searches(claim: Claim) -> dict[str, Search]:
    """Return an empty sweep for every arm that has one of its own."""
    return {
        label: Search(arm.lrs, extend=FURTHER)
        for label, arm in claim.arms.items()
        if label not in claim.lr_of and len(arm.lrs) > 1
    }


def _chosen(claim: Claim, searches: dict[str, Search]) -> dict[str, float]:
    """The learning rate of every arm: the best of its sweep, or taken from another arm's."""
    own = {}
    for label, arm in claim.arms.items():
        if label in searches:
            sweep = searches[label].sweep
            own[label] = sweep.rates[sweep.best]
        elif label not in claim.lr_of:
            own[label] = arm.lrs[0]
    taken = {a: own[b] * claim.lr_factor.get(a, 1.0) for a, b in claim.lr_of.items()}
    return own | taken


def _told(search: Search) -> dict[str, float]:
    return {f"{lr:g}": loss for lr, loss in sorted(search.found.items())}


def _recorded(
    claim: Claim,
    tasks: Iterable[Task],
    setting: Setting,
    store: RunStore,
    tell: Callable[[str], None],
    wanted: tuple[str, ...] | None = None,
) -> Iterator[tuple[Task, RunRecord]]:
    """Every task's record: the known ones first, then those that are trained.

    Known is a run that is recorded with the wanted measures, by default all of the claim's.
    """
    data, missing = _corpus(setting.data).fingerprint, []
    for task in tasks:
        record = _known(claim, task, store, data, wanted or claim.measures(task.arm))
        if record is None:
            missing.append(task)
            continue
        tell(f"{claim.name}: {_words(task)}, recorded {record.date}")
        yield task, record
    for task, record in _worked(claim, missing, setting):
        store.add(claim.name, record)
        tell(f"{claim.name}: {_words(task)}")
        yield task, record


def _known(
    claim: Claim, task: Task, store: RunStore, data: str, wanted: Iterable[str]
) -> RunRecord | None:
    """Return the record of a run on this data if it has the wanted measures."""
    arm, plan = claim.arms[task.arm], claim.plan_of(task.arm)
    setting = run_setting(arm, plan)(spec_for(arm, task.lr, task.seed))
    return store.get(setting, data, wanted)


def _words(task: Task) -> str:
    return f"{task.arm}, lr {task.lr:g}, seed {task.seed}"


def _worked(claim: Claim, tasks: list[Task], setting: Setting) -> Iterator[tuple[Task, RunRecord]]:
    if setting.jobs == 1:
        for task in tasks:
            yield task, work(task, setting, claim)
        return
    with ProcessPoolExecutor(
        setting.jobs, get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        waiting = {pool.submit(work, task, setting): task for task in tasks}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()


def work(task: Task, setting: Setting, claim: Claim | None = None) -> RunRecord:
    """Train one run to its end, or continue it; return its record."""
    claim = claim or setting.of(find(task.claim))
    arm, plan = claim.arms[task.arm], claim.plan_of(task.arm)
    spec = spec_for(arm, task.lr, task.seed)
    folder, corpus = run_folder(setting.out, arm, plan, spec), _corpus(setting.data)
    start = time.process_time()
    run = Run(spec, plan, corpus, folder, arm.recipe)
    trained = not run.ended
    if trained:
        _watch(run, arm)
        for _ in run.records():
            pass
    diverged = history.load(folder).stopped is not None
    if arm.finish is not None and not diverged and not (folder / measures.FINISHED).exists():
        if not trained:
            run.restore()
        text = json.dumps(dict(arm.finish(run)))
        (folder / measures.FINISHED).write_text(text, encoding="utf-8")
    names = [] if diverged else claim.measures(task.arm)
    found = {"loss": math.nan} | {name: measures.measured(folder, name) for name in names}
    return record_of(task.arm, arm, run, found, time.process_time() - start)


def record_of(
    label: str, arm: Arm, run: Run, found: Mapping[str, float], seconds: float
) -> RunRecord:
    """Return the record of a finished run; its processor time adds up over interruptions."""
    spec = run.spec
    return RunRecord(
        setting=run_setting(arm, run.plan)(spec),
        arm=label,
        lr=spec.lr,
        weight_decay=spec.weight_decay,
        aux_lr=spec.aux_lr,
        seed=spec.seed,
        measures=found,
        cpu_seconds=round(_add_seconds(run.folder, seconds), 1),
        date=datetime.now(UTC).date().isoformat(),
        data=run.corpus.fingerprint,
        versions=versions(),
        hardware=hardware(device_of(run.plan.device)),
    )


def _watch(run: Run, arm: Arm) -> None:
    """Add a run's probes; columns and activations as often as its own neurons."""
    every = run.plan.neurons_every
    activations = JsonLines(run.folder / measures.ACTIVATIONS)
    if not run.model.config.is_mixture:
        silent = ActivationMonitor(run.model, activations, every=every)
        silent.resume(run.step)
        run.optimizer.observe(silent)
    columns = NeuronMonitor(
        JsonLines(run.folder / measures.NEURONS),
        every=every,
        step=run.step,
        columns=True,
        spectra=0,
    )
    run.optimizer.observe(columns)
    if arm.prepare is not None:
        arm.prepare(run)


@cache
def _corpus(data: Path | None) -> Corpus:
    return load_corpus(data)


def _add_seconds(folder: Path, seconds: float) -> float:
    """Add to the processor time of a run and return the sum."""
    path = folder / CPU
    known = json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.exists() else 0.0
    path.write_text(json.dumps({"seconds": known + seconds}), encoding="utf-8")
    return float(known + seconds)
