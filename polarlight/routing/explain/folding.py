"""Names of repeated layers in one line: `layers.0.up`, `layers.1.up` as `layers.{0-1}.up`."""

import re
from collections.abc import Iterable, Sequence

MANY_RUNS = 4
"""From this many runs of numbers on, those in the middle are left out."""

_Cells = tuple[str, ...]

_NUMBER = re.compile(r"(?<=_)(\d+)(?=\.)")
"""A number at the end of a part of a name that other parts follow."""

_GLUE = "\0"
"""Ends a part that is to be joined with the number after it without a dot."""


def fold(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return (pattern, names) pairs: `layers.0.up`, `layers.1.up` fold into `layers.{0-1}.up`.

    Names that differ in numbers between dots, or between an underscore and a dot
    (`encoder_layer_0.up` of torchvision), are folded, and only if the pattern covers exactly
    them: with two numbers, every value of one occurs with every value of the other.
    """
    alike: dict[_Cells, list[_Cells]] = {}
    for name in names:
        cells = tuple(_NUMBER.sub(rf"{_GLUE}.\1", name).split("."))
        template = tuple("" if cell.isdigit() else cell for cell in cells)
        alike.setdefault(template, []).append(cells)
    folded = (block for same in alike.values() for block in _fold_numbers(same))
    return [(_join_cells(cells), members) for cells, members in folded]


def _join_cells(cells: _Cells) -> str:
    """Return the full name that was split into these parts."""
    return ".".join(cells).replace(f"{_GLUE}.", "")


def _fold_numbers(names: Sequence[_Cells]) -> list[tuple[_Cells, list[str]]]:
    """Return (name with ranges, full names) of split names that are alike except for numbers."""
    blocks = [(cells, [_join_cells(cells)]) for cells in names]
    for place in reversed(range(len(names[0]))):
        merged: dict[_Cells, list[tuple[_Cells, list[str]]]] = {}
        for cells, members in blocks:
            rest = (*cells[:place], "", *cells[place + 1 :])
            merged.setdefault(rest, []).append((cells, members))
        blocks = []
        for same in merged.values():
            cells = same[0][0]
            if len(same) > 1:  # several names become one, with `{0-3}` for their numbers
                text = f"{{{ranges(int(other[place]) for other, _ in same)}}}"
                cells = (*cells[:place], text, *cells[place + 1 :])
            blocks.append((cells, [name for _, members in same for name in members]))
    return blocks


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers as text: `0-3,7`; of four or more runs the first two, `...` and the last."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [f"{first}-{last}" if last > first else f"{first}" for first, last in runs]
    return ",".join(texts if len(texts) < MANY_RUNS else [*texts[:2], "...", texts[-1]])
