"""Details about the run, in blocks that unfold."""

from collections.abc import Mapping, Sequence
from typing import Any

from polarlight.lab.report import (
    NOTHING,
    Block,
    Cell,
    Column,
    Details,
    Listing,
    Section,
    Table,
    Text,
    facts,
)
from polarlight.lab.train.report.groups import Group

_TITLES = {
    "command": "Command",
    "settings": "Settings",
    "model": "Model",
    "data": "Data",
    "versions": "Versions",
    "hardware": "Hardware",
    "explain": "Routing: rule of every parameter, with the reason",
}


def about_the_run(groups: Sequence[Group], about: Mapping[str, Any]) -> Section:
    """Return blocks on the run: known parts first, then all others in `about`."""
    known = [key for key in _TITLES if key in about]
    others = [key for key in about if key not in _TITLES and key != "title"]
    blocks: list[Block] = [_details(key, about[key]) for key in known + others]
    blocks += _recorded_settings(groups)
    return Section("About the run", blocks or [Text("Nothing else was recorded.")])


def _details(key: str, value: Any) -> Details:
    title = _TITLES.get(key, str(key))
    if key == "explain" and isinstance(value, Mapping):
        tables = [(Text(str(label)), Listing(str(table))) for label, table in value.items()]
        return Details(title, [block for pair in tables for block in pair])
    if isinstance(value, Mapping):
        return Details(title, [facts(value)])
    if isinstance(value, list | tuple):
        return Details(title, [facts({str(i): item for i, item in enumerate(value, 1)})])
    return Details(title, [Listing(str(value))])


def _recorded_settings(groups: Sequence[Group]) -> list[Block]:
    """Return the runs' settings: shared ones, and differences between labels."""
    runs = {g.label: [_leaves(run.settings) for run in g.runs] for g in groups}
    every = [leaves for recorded in runs.values() for leaves in recorded]
    names = dict.fromkeys(name for leaves in every for name in leaves)
    shared = {n: every[0].get(n) for n in names if len({leaves.get(n) for leaves in every}) == 1}
    blocks: list[Block] = []
    if shared:
        blocks.append(Details("Settings that all runs share", [facts(shared)]))
    if other := [name for name in names if name not in shared]:
        columns = [Column(label, left=True, wraps=True) for label in ["setting", *runs]]
        rows = [
            [Cell(name), *(Cell(_values(name, recorded)) for recorded in runs.values())]
            for name in other
        ]
        blocks.append(Details("Settings that differ", [Table(columns, rows)]))
    return blocks


def _leaves(settings: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Return nested settings as text by dotted name."""
    leaves: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            leaves |= _leaves(value, f"{path}{name}.")
        else:
            leaves[f"{path}{name}"] = NOTHING if value is None else str(value)
    return leaves


def _values(name: str, recorded: Sequence[Mapping[str, str]]) -> str:
    """Return the values of a setting over the seeds of one label, each once."""
    return ", ".join(dict.fromkeys(leaves.get(name, NOTHING) for leaves in recorded))
