"""Training the runs of the speedup plan that are not recorded yet."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch

from polarlight.lab.claims.claim import run_folder, spec_for
from polarlight.lab.claims.running import record_of
from polarlight.lab.claims.speedup.plan import TUNING_SEED, GridPart, method_of
from polarlight.lab.claims.speedup.tuning import Losses, Numbers, TuningJob, due
from polarlight.lab.claims.store import SHIPPED, RunRecord, RunStore, run_setting
from polarlight.lab.train import history
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.data import Corpus
from polarlight.lab.train.loop import Run
from polarlight.lab.train.settings import Spec

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Folder of the runs and file of their records.

    Attributes:
        out: Folder of the runs.
        records: Folder of `speedup-PART.jsonl`; None takes `out`.
        data: See `load_corpus`.
        jobs: Runs at a time, each in a process of one thread; 1 stays in this process.
    """

    out: Path
    records: Path | None = None
    data: Path | None = None
    jobs: int = 1

    def store(self) -> RunStore:
        """Return the runs that are known: shipped ones and those recorded here."""
        return RunStore([SHIPPED, self.records or self.out])


def spec_of_job(job: TuningJob) -> Spec:
    """Return the numbers of a run."""
    numbers = job.numbers
    return replace(
        _method_spec(job.method),
        lr=numbers.lr,
        weight_decay=numbers.weight_decay,
        aux_lr=numbers.aux_lr,
        seed=job.seed,
    )


@cache
def _method_spec(method: str) -> Spec:
    """Return a method's spec under any numbers: the rule in full takes a millisecond to make."""
    return spec_for(method_of(method), 1.0, 0)


def losses_of(part: GridPart, runs: RunStore, data: str) -> dict[TuningJob, float]:
    """Return the final losses of a part that are recorded, on this data."""
    found = records_of(part, runs, data)
    return {job: math.inf if r.diverged else r.measures["loss"] for job, r in found.items()}


def records_of(part: GridPart, runs: RunStore, data: str) -> dict[TuningJob, RunRecord]:
    """Return the records of a part, on this data."""
    settings = {
        (method, length): run_setting(method_of(method), part.plan(length))
        for method in part.methods
        for length in part.lengths_of(method)
    }
    found = {}
    for record in runs:
        if record.data != data or record.arm not in part.methods:
            continue
        numbers = Numbers(record.lr, record.weight_decay, record.aux_lr)
        for length in part.lengths_of(record.arm):
            job = TuningJob(record.arm, length, numbers, record.seed)
            if settings[record.arm, length](spec_of_job(job)) == record.setting:
                found[job] = record
    return found


def run_part(part: GridPart, place: Place, tell: Tell, methods: tuple[str, ...] = ()) -> Losses:
    """Train what is missing of a part, short runs first, and return all losses.

    Args:
        part: The part of the plan.
        place: Where runs live.
        tell: Called with a line for every run that is finished.
        methods: Those that are trained; none takes all of the part.
    """
    store, data = place.store(), corpus_of(place.data).fingerprint
    known = losses_of(part, store, data)
    while jobs := shortest_due(part, methods or part.methods, known):
        for job, record in _worked(part, jobs, place):
            store.add(f"speedup-{part.name}", record)
            known[job] = math.inf if record.diverged else record.measures["loss"]
            tell(f"{part.name}: {in_words(job)}: loss {known[job]:.4f}")
    return known


def shortest_due(part: GridPart, methods: Sequence[str], known: Losses) -> list[TuningJob]:
    """Return the jobs of the shortest length that is due for any method.

    So all methods are compared at short lengths before one is trained at a long one.
    """
    jobs = [job for method in methods for job in due(part, method, known)]
    shortest = min((job.length for job in jobs), default=0.0)
    return [job for job in jobs if job.length == shortest]


def in_words(job: TuningJob) -> str:
    """Return a run as a line of progress."""
    n = job.numbers
    seed = "tuning" if job.seed == TUNING_SEED else f"seed {job.seed}"
    return (
        f"{job.method}, {job.length:g} budgets, lr {n.lr:g}, decay {n.weight_decay:g}, "
        f"aux lr {n.aux_lr:g}, {seed}"
    )


def _worked(
    part: GridPart, jobs: list[TuningJob], place: Place
) -> Iterator[tuple[TuningJob, RunRecord]]:
    if place.jobs == 1:
        for job in jobs:
            yield job, train(part, job, place)
        return
    with ProcessPoolExecutor(place.jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        waiting = {pool.submit(train, part, job, place): job for job in jobs}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()


def train(part: GridPart, job: TuningJob, place: Place) -> RunRecord:
    """Train one run to its end, or resume it, and return its record.

    Its checkpoint is deleted: nothing is resumed from the end.
    """
    arm, plan, spec = method_of(job.method), part.plan(job.length), spec_of_job(job)
    folder = run_folder(place.out, arm, plan, spec)
    start = time.process_time()
    run = Run(spec, plan, corpus_of(place.data), folder, arm.recipe)
    if not run.ended:
        for _ in run.records():
            pass
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    loss = history.load(folder).final_loss
    found = {"loss": math.nan if loss is None else loss}
    return record_of(job.method, arm, run, found, time.process_time() - start)


@cache
def corpus_of(data: Path | None) -> Corpus:
    """Return the corpus, loaded once per process."""
    return load_corpus(data)
