"""First screen of the report: the runs, the results, and their uncertainty."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polarlight.lab.report import Block, Text, compact, count, fixed
from polarlight.lab.statistics import Compared, sentence
from polarlight.lab.statistics.family import ENOUGH
from polarlight.lab.train.history import History
from polarlight.lab.train.report.groups import Group, best
from polarlight.lab.train.report.measures import last_step
from polarlight.lab.train.report.significance import TOKENS, compared, headline, with_seeds
from polarlight.lab.train.report.tables import comparisons, results


def opening(groups: Sequence[Group], about: Mapping[str, Any]) -> list[Block]:
    """Return the statement, the table of results, and the uncertainty of differences."""
    if not groups:
        return [Text("No run has been recorded yet.", "lead")]
    said = statements(groups, about)
    first = [Text(said[0], "lead")] if said else []
    what = Text(statement(groups, about), "plain" if first else "lead")
    return [*first, what, results(groups), *trust(groups, about)]


def statements(groups: Sequence[Group], about: Mapping[str, Any]) -> list[str]:
    """Return the result as sentences, lowest loss first; none where nothing is compared.

    The first says the comparison with the reference, or which command gives an interval.
    """
    found = compared(groups)
    if not found:
        return []
    unit = unit_of(about)
    others = [sentence(one, unit) for one in found[1:]]
    return [headline(found, unit, str(about.get("command") or "")), *others]


def unit_of(about: Mapping[str, Any]) -> str:
    """Return the unit of the losses."""
    return str(_get(about, "data", "unit") or TOKENS)


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


def trust(groups: Sequence[Group], about: Mapping[str, Any]) -> list[Block]:
    """Return what the seeds allow to say: a note, and a table where there are intervals."""
    if best(groups) is None:
        return [Text("No run has finished with a validation loss, so nothing is compared.", "note")]
    found = compared(groups)
    if not found:
        return [Text("There is no other optimizer to compare with.", "note")]
    if all(one.difference.error is None for one in found):
        again = with_seeds(str(about.get("command") or ""), ENOUGH)
        return [Text(f"{_ONE_SEED} For intervals, run: {again}", "note")]
    return [Text(_method(found), "note"), comparisons(found, groups)]


_ONE_SEED = (
    "One seed cannot separate the optimizers: the same optimizer ends at another loss with another "
    "seed, by an amount that these runs do not show."
)
_LIMITS = "Valid for this model, data, settings and length of training, and for no others."


def _method(found: Sequence[Compared]) -> str:
    """Return how the table below was computed and on what it rests."""
    how = f"Differences to {found[0].reference}"
    if all(one.difference.paired for one in found):
        how += ", seed by seed, with Student's t: seeds share initial weights and data order"
    else:
        how += ", with Welch's t where optimizers share no seed"
    told = [f"{how}; differences are taken to be normally distributed."]
    if len(found) > 1:
        told.append(
            f"The {len(found)} intervals hold together with confidence 95 % (Dunnett's levels)."
        )
    told.append("Detectable: the smallest difference that 80 % of such experiments find.")
    few = min(one.difference.n for one in found)
    if few < ENOUGH:
        told.append(f"With {few} seeds intervals are wide; 4 or more narrow them.")
    return " ".join([*told, _LIMITS])
