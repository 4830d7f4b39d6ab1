"""Tables of the report."""

from collections.abc import Callable, Mapping, Sequence

from polarlight.lab.report import (
    NOTHING,
    Cell,
    Column,
    LineStyle,
    Table,
    fixed,
    percent,
    shorten,
    signed,
)
from polarlight.lab.statistics import Compared
from polarlight.lab.train.history import History, Record
from polarlight.lab.train.report.groups import Group, best
from polarlight.lab.train.report.measures import (
    THRESHOLDS,
    last_neurons,
    last_routing,
    last_step,
    load_at_end,
    mean,
    optimizer_share,
    starved_at_end,
    starved_in,
    status,
    step_time,
    token_rate,
)

DIGITS = 4
"""Digits of a loss."""

_LOSS = "Validation loss at the end"
_SPEED = "Speed"


def results(groups: Sequence[Group]) -> Table:
    """Return one row per group: loss, starved rows, experts, speed, end of the runs."""
    winner = best(groups)
    differences = _differences(groups, winner)
    several = any(group.deviation is not None for group in groups)
    mixture = any(run.routing for group in groups for run in group.runs)
    columns = [
        Column("optimizer", left=True, wraps=True),
        Column("mean", _LOSS, hint="mean over the seeds that finished"),
        *([Column("± sd", _LOSS, hint="standard deviation over seeds")] if several else []),
        Column("n", _LOSS, hint="seeds that finished"),
        *(Column(title, _LOSS) for title, _ in differences),
        *_starved_columns(),
        *(_LOAD_COLUMNS if mixture else ()),
        Column("ms/step", _SPEED, hint="median time of a training step"),
        Column("optimizer", _SPEED, hint="median share of the optimizer in the step"),
        Column("tokens/s", _SPEED, hint="median over the run"),
        Column("runs", left=True, wraps=True),
    ]
    rows = [
        [
            *_loss_cells(group, strong=group is winner, several=several),
            *(Cell(signed(_minus(group, other), DIGITS)) for _, other in differences),
            *_starved_cells(group),
            *(_load_cells(group) if mixture else ()),
            *_speed_cells(group),
            Cell(runs_in_words(group.runs)),
        ]
        for group in groups
    ]
    return Table(columns, rows, _caption(groups))


def _differences(groups: Sequence[Group], winner: Group | None) -> list[tuple[str, Group]]:
    """Return differences from the best group and, if it is another, the first."""
    if winner is None or len(groups) < 2:
        return []
    first = groups[0]
    against_first = [(f"to {shorten(first.label, 14)}", first)]
    return [("to best", winner)] + (against_first if first is not winner and first.losses else [])


def _minus(group: Group, other: Group) -> float | None:
    if group is other or group.loss is None or other.loss is None:
        return None
    return group.loss - other.loss


def _loss_cells(group: Group, *, strong: bool, several: bool) -> list[Cell]:
    spread = "" if group.deviation is None else f"± {fixed(group.deviation, DIGITS)}"
    return [
        Cell(group.label, style=group.style),
        Cell(fixed(group.loss, DIGITS), strong=strong),
        *([Cell(spread)] if several else []),
        Cell(str(len(group.losses))),
    ]


STARVED = (*(("update", t) for t in THRESHOLDS), ("momentum", 0.1))
"""What the first table tells of starved rows, by reading and threshold."""


def _starved_columns() -> list[Column]:
    hint = "share of rows below {} of an equal share in the last sample, mean over matrices"
    groups = {"update": "Starved, by update", "momentum": "By momentum"}
    return [
        Column(f"< {t:g}", groups[reading], hint=hint.format(f"{t:g}")) for reading, t in STARVED
    ]


def _starved_cells(group: Group) -> list[Cell]:
    return [Cell(percent(_starved(group, *key))) for key in STARVED]


def _starved(group: Group, reading: str, threshold: float) -> float | None:
    return group.average(lambda run: starved_at_end(run, reading, threshold))


_LOAD_COLUMNS = (
    Column(
        "spread",
        "Experts",
        hint="deviation over mean of the experts' loads in the last validation, mean over layers",
    ),
    Column("dead", "Experts", hint="share of experts below 0.1 of an equal share of the tokens"),
)


def two_digits(value: float | None) -> str:
    """Format a spread in a table."""
    return fixed(value, 2)


def _load_cells(group: Group) -> list[Cell]:
    return [
        Cell(two_digits(group.average(lambda run: load_at_end(run, "variation")))),
        Cell(percent(group.average(lambda run: load_at_end(run, "dead")))),
    ]


def _speed_cells(group: Group) -> list[Cell]:
    return [
        Cell(fixed(group.average(step_time), 1)),
        Cell(percent(group.average(optimizer_share))),
        Cell(fixed(group.average(token_rate), 0)),
    ]


def runs_in_words(runs: Sequence[History]) -> str:
    """Return the ends of a label's runs: `2 finished; seed 1 stopped at ...`."""
    if len(runs) == 1:
        return status(runs[0])
    ends: dict[str, list[int]] = {}
    for run in runs:
        ends.setdefault(status(run), []).append(run.seed)
    order = sorted(ends, key=lambda end: end != "finished")
    return "; ".join(_end_in_words(end, ends[end]) for end in order)


def _end_in_words(end: str, seeds: Sequence[int]) -> str:
    if len(seeds) == 1 and end != "finished":
        return f"seed {seeds[0]} {end}"
    return f"{len(seeds)} {end}"


def _caption(groups: Sequence[Group]) -> str:
    text = "Loss: of the n seeds that finished; the lowest mean is bold. "
    if any(group.finished and group.cut_short for group in groups):
        text += (
            "Runs that were cut short do not count where others of the same optimizer finished. "
        )
    if any(not group.finished and any(map(last_step, group.runs)) for group in groups):
        text += "Where no run finished, starved rows and speed are those of the last records. "
    return text + "Starved: share of the rows of tall matrices; see Starved neurons."


def comparisons(found: Sequence[Compared], groups: Sequence[Group]) -> Table:
    """Return every optimizer against the reference: difference, interval, verdict."""
    columns = [
        Column(f"against {found[0].reference}", left=True, wraps=True),
        Column("difference", hint="mean over seeds"),
        Column("95 % interval", hint="all intervals of this table hold together"),
        Column("n", hint="seeds that both have"),
        Column("detectable", hint="smallest difference found with 80 % power"),
        Column("verdict", left=True),
    ]
    look = {group.label: group.style for group in groups}
    return Table(columns, [_comparison(one, look[one.arm]) for one in found])


def _comparison(one: Compared, style: LineStyle) -> list[Cell]:
    low, high = one.interval
    known = one.difference.error is not None
    return [
        Cell(one.arm, style=style),
        Cell(signed(one.difference.estimate, DIGITS)),
        Cell(f"{signed(low, DIGITS)} to {signed(high, DIGITS)}" if known else NOTHING),
        Cell(str(one.difference.n)),
        Cell(fixed(one.detectable, DIGITS) if known else NOTHING),
        Cell(str(one.standing) if known else "one seed"),
    ]


def per_layer(groups: Sequence[Group], reading: str, threshold: float) -> Table | None:
    """Return the share of starved rows per matrix at the end; None without neuron records."""
    found = [
        _at_end(group, last_neurons, lambda matrix: starved_in(matrix, reading, threshold))
        for group in groups
    ]
    return _by_layer("matrix", groups, found, percent)


def load_per_layer(
    groups: Sequence[Group], key: str, text: Callable[[float | None], str]
) -> Table | None:
    """Return a number of every router's load; None without routing records."""
    found = [_at_end(group, last_routing, lambda layer: float(layer[key])) for group in groups]
    return _by_layer("router", groups, found, text)


def _by_layer(
    title: str,
    groups: Sequence[Group],
    found: Sequence[Mapping[str, float | None]],
    text: Callable[[float | None], str],
) -> Table | None:
    """Return a table, one row per layer and one column per group, shaded by value."""
    known = [(group, layers) for group, layers in zip(groups, found, strict=True) if layers]
    names = dict.fromkeys(name for _, layers in known for name in layers)
    if not names:
        return None
    columns = [
        Column(title, left=True, wraps=True),
        *(Column(shorten(g.label, 16)) for g, _ in known),
    ]
    rows = [[Cell(name), *(_heat(layers.get(name), text) for _, layers in known)] for name in names]
    return Table(columns, rows)


def _at_end(
    group: Group, last: Callable[[History], Record | None], measure: Callable[[Record], float]
) -> Mapping[str, float | None]:
    """Return a number about every layer of the last record, mean over the counted runs."""
    records = [record["layers"] for run in group.counted if (record := last(run))]
    names = dict.fromkeys(name for layers in records for name in layers)
    return {
        name: mean(measure(layers[name]) for layers in records if name in layers) for name in names
    }


def _heat(value: float | None, text: Callable[[float | None], str]) -> Cell:
    return Cell(text(value), shade=None if value is None else min(1.0, 2 * value))
