"""First screen of the report: the runs, the results, and their uncertainty."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polarlight.lab.report import Block, Text, compact, count, fixed
from polarlight.lab.train.history import History
from polarlight.lab.train.report.groups import Group, best
from polarlight.lab.train.report.measures import last_step
from polarlight.lab.train.report.significance import Scatter, against_best, pooled
from polarlight.lab.train.report.tables import DIGITS, comparisons, results

FEW = 6
"""Degrees of freedom below which the spread between seeds is only roughly known."""


def opening(groups: Sequence[Group], about: Mapping[str, Any]) -> list[Block]:
    """Return the statement, the table of results, and the uncertainty of differences."""
    if not groups:
        return [Text("No run has been recorded yet.", "lead")]
    return [Text(statement(groups, about), "lead"), results(groups), *trust(groups)]


def statement(groups: Sequence[Group], about: Mapping[str, Any]) -> str:
    """Return one sentence on the runs, and a second one if runs are missing."""
    runs = [run for group in groups for run in group.runs]
    parts = ["The same language model", *_model(about), "was trained", *_data(about)]
    parts += [*_length(runs), "with", count(len(groups), "optimizer"), "and", _seeds(groups)]
    finished = sum(run.finished for run in runs)
    of = f"{finished} of {len(runs)} runs" if finished else "No run"
    missing = "" if finished == len(runs) else f" {of} finished."
    return " ".join(parts) + "." + missing


def _model(about: Mapping[str, Any]) -> Iterator[str]:
    parameters = _get(about, "model", "parameters")
    active = _get(about, "model", "active_parameters")
    if isinstance(parameters, int):
        yield f"of {compact(parameters)} parameters"
    if isinstance(active, int):
        yield f"({compact(active)} per token)"


def _data(about: Mapping[str, Any]) -> Iterator[str]:
    name, tokens = _get(about, "data", "name"), _get(about, "data", "train_tokens")
    if name:
        yield f"on {name}"
    if isinstance(tokens, int):
        yield f"({compact(tokens)} training tokens)"


def _length(runs: Sequence[History]) -> Iterator[str]:
    ends = {last_step(run) for run in runs if run.finished} or {max(map(last_step, runs))}
    span = sorted({min(ends), max(ends)})
    if span != [0]:
        yield "for " + " to ".join(fixed(step, 0) for step in span) + " steps"
    seen = max((run.steps[-1]["tokens"] for run in runs if run.steps), default=0)
    if seen:
        yield f"({compact(seen)} tokens)"


def _seeds(groups: Sequence[Group]) -> str:
    numbers = sorted({min(len(g.runs) for g in groups), max(len(g.runs) for g in groups)})
    if numbers == [1]:
        return "one seed"
    each = " each" if len(groups) > 1 else ""
    return " to ".join(map(str, numbers)) + " seeds" + each


def _get(about: Mapping[str, Any], *path: str) -> Any:
    """Return a nested entry, or None."""
    value: Any = about
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def trust(groups: Sequence[Group]) -> list[Block]:
    """Return the conclusions that the spread between seeds allows."""
    winner, scatter = best(groups), pooled(groups)
    if winner is None:
        return [Text("No run has finished with a validation loss, so nothing is compared.", "note")]
    if scatter is None:
        return [Text(_ONE_SEED, "note")]
    found = against_best(groups)
    if not found:
        return [Text(_scatter(scatter) + " There is no other optimizer to compare with.", "note")]
    out = sum(one.stands_out(scatter) for one in found)
    return [
        Text(f"{_scatter(scatter)} {_RULE} {_verdict(out, len(found))}", "note"),
        comparisons(found, scatter),
    ]


_ONE_SEED = (
    "One seed cannot separate the optimizers: the same optimizer ends at another loss with another "
    "seed, and these runs do not tell how far. To measure that spread, train every optimizer with "
    "at least two seeds, better three or more. With n seeds each, a difference then stands out "
    "from 2·sqrt(2/n) seed deviations on: 2.0 for two seeds, 1.6 for three, 0.9 for ten."
)
_RULE = (
    "The statistic is the difference to the best divided by "
    "sqrt(1/n₁\N{NO-BREAK SPACE}+\N{NO-BREAK SPACE}1/n₂). Above two pooled deviations the "
    "difference stands out; below, it may be the seeds alone."
)
_LIMITS = "for this model, data, settings and length of training, and for no others."


def _scatter(scatter: Scatter) -> str:
    few = " With so few, the deviation itself is uncertain." if scatter.freedom < FEW else ""
    return (
        f"Seeds of one optimizer scatter with a pooled standard deviation of "
        f"{fixed(scatter.deviation, DIGITS)} ({count(scatter.freedom, 'degree')} of freedom).{few}"
    )


def _verdict(out: int, total: int) -> str:
    if total == 1:
        return f"Here the difference {'stands out' if out else 'does not'}: {_LIMITS}"
    return f"Here {out} of {total} stand out: {_LIMITS}"
