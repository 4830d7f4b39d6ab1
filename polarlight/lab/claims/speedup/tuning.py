"""Order of the runs of a method: the jobs that are due, given the losses that are known.

Pure functions of recorded losses, so that the work goes on over days and machines.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from polarlight.lab.claims.speedup.plan import (
    AUX_RATES,
    CHECK_LENGTH,
    TUNING_SEED,
    GridPart,
    method_of,
)
from polarlight.lab.tuning import Search

FURTHER = 5
"""Learning rates beyond an end of the grid, at most."""

FURTHER_AUX = 2
"""AdamW's rates for the rest beyond an end, at most."""


@dataclass(frozen=True, slots=True, order=True)
class Numbers:
    """Tuned numbers of a method.

    Attributes:
        lr: Learning rate of the hidden matrices.
        weight_decay: Their decoupled weight decay.
        aux_lr: AdamW's learning rate for the rest.
    """

    lr: float
    weight_decay: float
    aux_lr: float


@dataclass(frozen=True, slots=True)
class TuningJob:
    """One run of a part of the plan."""

    method: str
    length: float
    numbers: Numbers
    seed: int


Losses = Mapping[TuningJob, float]
"""Final losses that are known; infinite where a run diverged."""


@dataclass(frozen=True, slots=True)
class TuningStage:
    """Progress of a method: the jobs that are due, or the numbers that were found.

    Attributes:
        due: Jobs whose losses are needed next; empty when the stage is done.
        best: Numbers of the lowest loss, once it is done.
    """

    due: tuple[TuningJob, ...]
    best: Numbers | None = None


def grid(part: GridPart, method: str, known: Losses) -> TuningStage:
    """Return the search over learning rate and weight decay, at the shortest length."""
    base = method_of(method).recipe.lr
    rates = [base * factor for factor in part.rates]
    decays = [product / base for product in part.decays]

    def job(lr: float, decay: float) -> TuningJob:
        return TuningJob(method, part.lengths[0], Numbers(lr, decay, AUX_RATES[1]), TUNING_SEED)

    jobs = [job(lr, decay) for decay in decays for lr in rates]
    if missing := tuple(one for one in jobs if one not in known):
        return TuningStage(missing)
    best = min(jobs, key=known.__getitem__).numbers
    if best.weight_decay == decays[-1]:
        beyond = job(best.lr, 4 * decays[-1])
        if beyond not in known:
            return TuningStage((beyond,))
        if known[beyond] < known[job(best.lr, best.weight_decay)]:
            return TuningStage((), beyond.numbers)
    search = Search(rates, extend=FURTHER)
    return _searched(search, lambda lr: job(lr, best.weight_decay), known)


def auxiliary(part: GridPart, method: str, numbers: Numbers, known: Losses) -> TuningStage:
    """Return the search over AdamW's rate for embeddings, head and norms."""
    search = Search(AUX_RATES, extend=FURTHER_AUX)

    def job(aux_lr: float) -> TuningJob:
        tuned = Numbers(numbers.lr, numbers.weight_decay, aux_lr)
        return TuningJob(method, part.lengths[0], tuned, TUNING_SEED)

    return _searched(search, job, known)


def again(part: GridPart, method: str, numbers: Numbers, known: Losses) -> TuningStage:
    """Return the second search over the learning rate, beside the rate found for the rest."""
    search = Search([numbers.lr * factor for factor in (0.5, 1.0, 2.0)], extend=FURTHER_AUX)

    def job(lr: float) -> TuningJob:
        tuned = Numbers(lr, numbers.weight_decay, numbers.aux_lr)
        return TuningJob(method, part.lengths[0], tuned, TUNING_SEED)

    return _searched(search, job, known)


def checked(part: GridPart, method: str, numbers: Numbers, known: Losses) -> TuningStage:
    """Return the check of the learning rate at the longer length, where the part has one."""
    if CHECK_LENGTH not in part.lengths_of(method):
        return TuningStage((), numbers)
    search = Search([numbers.lr * factor for factor in (0.5, 1.0, 2.0)], extend=0)

    def job(lr: float) -> TuningJob:
        tuned = Numbers(lr, numbers.weight_decay, numbers.aux_lr)
        return TuningJob(method, CHECK_LENGTH, tuned, TUNING_SEED)

    return _searched(search, job, known)


def _searched(search: Search, job: Callable[[float], TuningJob], known: Losses) -> TuningStage:
    """Return the jobs that a search is waiting for, or the numbers of its best rate."""
    while rates := search.due():
        missing = tuple(job(rate) for rate in rates if job(rate) not in known)
        if missing:
            return TuningStage(missing)
        for rate in rates:
            search.tell(rate, known[job(rate)])
    sweep = search.sweep
    return TuningStage((), job(sweep.rates[sweep.best]).numbers)


@dataclass(frozen=True, slots=True)
class Tuned:
    """Tuning of a method, as far as it has come.

    Attributes:
        due: Jobs of the tuning that are due next.
        short: Numbers for lengths below the check; None while they are not known.
        long: Numbers from the check on; None while they are not known.
    """

    due: tuple[TuningJob, ...]
    short: Numbers | None = None
    long: Numbers | None = None

    def at(self, length: float) -> Numbers | None:
        """Return the numbers for a length."""
        return self.long if length >= CHECK_LENGTH else self.short


def tuned(part: GridPart, method: str, known: Losses) -> Tuned:
    """Return how far the tuning of a method has come.

    Raises:
        ValueError: If every run of a search diverged.
    """
    first = grid(part, method, known)
    if first.best is None:
        return Tuned(first.due)
    second = auxiliary(part, method, first.best, known)
    if second.best is None:
        return Tuned(second.due)
    third = again(part, method, second.best, known)
    if third.best is None:
        return Tuned(third.due)
    fourth = checked(part, method, third.best, known)
    return Tuned(fourth.due, third.best, fourth.best)


def finals(part: GridPart, method: str, found: Tuned) -> list[TuningJob]:
    """Return the runs that speedups are computed from, as far as their numbers are known."""
    return [
        TuningJob(method, length, numbers, seed)
        for length in part.lengths_of(method)
        if (numbers := found.at(length)) is not None
        for seed in range(part.seeds)
    ]


def due(part: GridPart, method: str, known: Losses) -> list[TuningJob]:
    """Return the jobs to run next: tuning first, then seeds; empty when the method is done."""
    found = tuned(part, method, known)
    ready = [job for job in finals(part, method, found) if job not in known]
    return [*found.due, *ready] if found.due else ready
