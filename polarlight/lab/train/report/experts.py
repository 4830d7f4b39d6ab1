"""Section on a mixture of experts: the load of its routers."""

from collections.abc import Sequence
from pathlib import Path

from polarlight.lab.report import Block, Details, Section, Text, percent
from polarlight.lab.train.history import History
from polarlight.lab.train.report.album import Album
from polarlight.lab.train.report.curves import Panel, over_steps, share
from polarlight.lab.train.report.groups import Group
from polarlight.lab.train.report.series import Series, load
from polarlight.lab.train.report.tables import load_per_layer, two_digits

_WORDS = (
    "In every layer a router sends each token to a few experts. The load of an expert is its share "
    "of what the routers sent, over the tokens of a validation; an expert is dead where it gets "
    "less than a tenth of an equal share. Among the starved rows, those of an expert are held "
    "against the update of this expert alone; where it is zero, as no token ever came, all of them "
    "count as starved."
)


def experts(groups: Sequence[Group], folder: Path) -> Section | None:
    """Return load and dead experts over time, and layer by layer; None for a dense model."""
    album = Album(folder)
    album.add(
        over_steps(groups, [_SPREAD], markers=True),
        "load_variation",
        "Spread of the load",
        "Standard deviation over mean of the experts' loads, mean over layers. Zero: all experts "
        "get equally many tokens.",
    )
    album.add(
        over_steps(groups, [_SHARE], markers=True),
        "load_dead",
        "Dead experts",
        "Share of the experts that get less than a tenth of an equal share, mean over layers; "
        "lines at zero cover each other.",
    )
    if not album.pictures:
        return None
    tables: list[Block] = [
        Details(title, [table])
        for key, text, title in _TABLES
        if (table := load_per_layer(groups, key, text)) is not None
    ]
    return Section("Experts", [Text(_WORDS), *album.blocks(""), *tables])


_TABLES = (
    ("variation", two_digits, "Spread of the load at the end, layer by layer"),
    ("dead", percent, "Dead experts at the end, layer by layer"),
)


def _variation(run: History) -> Series:
    return load(run, "variation")


def _dead(run: History) -> Series:
    return load(run, "dead")


_SPREAD = Panel(_variation, "loads: deviation / mean")
_SHARE = Panel(_dead, "experts", scale=share)
