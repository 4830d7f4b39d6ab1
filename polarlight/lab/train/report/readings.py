"""Tables of all readings in the last record: a row per group, a column per reading."""

from collections.abc import Sequence
from functools import partial

from polarlight.lab.report import (
    Block,
    Cell,
    Column,
    Details,
    Table,
    Text,
    fixed,
    glossary,
    percent,
    shorten,
)
from polarlight.lab.train.report.groups import Group
from polarlight.lab.train.report.measures import at_end

TABLES = {
    "Neurons": (
        *("update/effective", "update/min", "update/spread"),
        *("update/ever/0.1", "update/stayed/0.1", "pair/update/0.1"),
        *("dead/0.1", "dead/0.01", "gate/closed", "gate/open", "gate/always_closed"),
    ),
    "Matrices": (
        *("ratio", "rms", "weight/rms", "row_norm_spread", "weight/row_norm_spread", "cosine"),
        *("alignment", "orthogonality", "stable_rank", "weight/stable_rank"),
        *("quantiles/0", "quantiles/0.5", "quantiles/1"),
    ),
}
"""What is told, in two tables that fit the page; see `diagnostics.glossary`."""

WORDS = {**glossary.NEURONS, **glossary.ACTIVATIONS}
_FRACTIONS = ("ever", "stayed", "pair", "dead", "gate", "effective", "starved")


def readings_at_end(groups: Sequence[Group]) -> list[Block]:
    """Return both tables, with the readings that the runs have."""
    tables = [(title, _table(groups, keys)) for title, keys in TABLES.items()]
    known = [(title, table) for title, table in tables if table is not None]
    blocks: list[Block] = [Details(title, [table]) for title, table in known]
    return [Text(_HOW), *blocks] if blocks else []


_HOW = (
    "Every reading in the last sample of a run: the mean over matrices or layers, and over seeds; "
    "of readings of a few matrices per sample, the latest number of each."
)


def _table(groups: Sequence[Group], keys: Sequence[str]) -> Table | None:
    found = {key: [group.average(partial(at_end, key=key)) for group in groups] for key in keys}
    told = {key: values for key, values in found.items() if any(x is not None for x in values)}
    if not told:
        return None
    columns = [
        Column("reading", left=True, wraps=True),
        *(Column(shorten(group.label, 16)) for group in groups),
        Column("what it is", left=True, wraps=True),
    ]
    rows = [
        [Cell(WORDS[key].title), *(Cell(_text(key, x)) for x in values), Cell(WORDS[key].says)]
        for key, values in told.items()
    ]
    return Table(columns, rows)


def _text(key: str, value: float | None) -> str:
    return percent(value) if set(key.split("/")) & set(_FRACTIONS) else _number(value)


def _number(value: float | None) -> str:
    """Format a number with three digits."""
    if value is None or value == 0:
        return fixed(value, 0)
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
