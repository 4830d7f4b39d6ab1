"""The rows as text: one entry for equal parameters of repeated layers, narrow enough to read."""

from collections.abc import Callable, Sequence
from textwrap import wrap

from polarlight.routing.explain.folding import fold
from polarlight.routing.explain.rows import Piece, Row

_HEADER = ["parameter", "n", "shape", "role", "rule", "lr x scale", "decay", "rms/step"]
_INDENT = 4

Entry = tuple[list[str], str]
"""Cells of a line, and the text below it."""


def format_rows(rows: Sequence[Row], *, every: bool, width: int) -> str:
    """Return rows as aligned text, equal layers on one line unless `every`, details below.

    The details are reason, view and engine; the text has at most `width` columns if it can.
    """
    named = [(row.name, [row]) for row in rows] if every else fold_rows(rows)
    entries = [(_cells(name, same), _details(same[0])) for name, same in named]
    columns = zip(_HEADER, *(cells for cells, _ in entries), strict=True)
    widths = [max(map(len, column)) for column in columns]
    widths[0] = max(min(widths[0], width - sum(widths[1:]) - 2 * len(widths[1:])), len(_HEADER[0]))
    lines = [_line(_HEADER, widths)]
    for cells, words in entries:
        lines.append(_line(cells, widths))
        indent = " " * _INDENT
        lines += wrap(
            words,
            width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def format_aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines of text, each column as wide as its longest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(_line(row, widths) for row in rows)


def fold_rows(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return (name pattern, rows) of rows that differ in the name alone, in the rows' order."""
    alike: dict[object, list[Row]] = {}
    for row in rows:
        key = (
            *(row.shape, row.role, row.rule, row.view, row.pieces, row.weight_decay, row.frozen),
            row.reason,
        )
        alike.setdefault(key, []).append(row)
    entries = []
    for same in alike.values():
        by_name = {row.name: row for row in same}
        if len(by_name) < len(same):  # without names there is nothing to fold
            entries.append((same[0].name, same))
            continue
        entries += [(pattern, [by_name[n] for n in names]) for pattern, names in fold(by_name)]
    order = {id(row): place for place, row in enumerate(rows)}
    return sorted(entries, key=lambda entry: min(order[id(row)] for row in entry[1]))


def _cells(name: str, same: Sequence[Row]) -> list[str]:
    """Return a table line's texts, in the header's order, of rows that are equal but for names."""
    row = same[0]
    shape = " x ".join(str(size) for size in row.shape) or "scalar"
    lr = "default" if row.lr is None else _distinct_text(row.pieces, lambda piece: piece.lr)
    decay = "default" if row.weight_decay is None else f"{row.weight_decay:.3g}"
    rms = _distinct_text(row.pieces, lambda piece: piece.rms)
    return [name, str(len(same)), shape, row.role, row.rule, lr, decay, rms]


def _distinct_text(pieces: Sequence[Piece], value_of: Callable[[Piece], float | None]) -> str:
    """Return the distinct values of pieces as text: one, two or "a to b"; `-` for none."""
    found = sorted({value for piece in pieces if (value := value_of(piece)) is not None})
    if not found:
        return "-"
    texts = list(dict.fromkeys(f"{value:.3g}" for value in found))
    return ", ".join(texts) if len(texts) <= 2 else f"{texts[0]} to {texts[-1]}"


def _details(row: Row) -> str:
    """Return the text below a row's line: reason -> view (unless whole) -> engines."""
    engines = ", ".join(dict.fromkeys(piece.engine for piece in row.pieces))
    view = [row.view] if row.view != "Whole()" and engines not in ("elementwise", "-") else []
    return " -> ".join([row.reason, *view, engines])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return cells as one line, padded to `widths`; a first cell too long is a line above it."""
    first, *rest = cells
    texts = [cell.ljust(width) for cell, width in zip(rest, widths[1:], strict=True)]
    head = first.ljust(widths[0])
    if len(first) > widths[0]:
        head = f"{first}\n{' ' * widths[0]}"
    return "  ".join([head, *texts]).rstrip()
