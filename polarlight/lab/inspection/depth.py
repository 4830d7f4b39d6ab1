"""Tables of a number over the layers of a network, by kind of matrix."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from polarlight.lab.inspection.measure import MatrixReport


@dataclass(frozen=True, slots=True)
class DepthTable:
    """One number per layer and kind of matrix.

    Attributes:
        depths: The layers, in order.
        kinds: Names of matrices within a layer.
        values: A row per layer; None where it has no such matrix.
    """

    depths: Sequence[int]
    kinds: Sequence[str]
    values: Sequence[Sequence[float | None]]


def by_depth(
    matrices: Iterable[MatrixReport], value: Callable[[MatrixReport], float | None]
) -> DepthTable:
    """Return the table of a number; the mean where a layer has several matrices of a kind."""
    found: dict[tuple[int, str], list[float]] = {}
    for matrix in matrices:
        place, number = place_of(matrix.name), value(matrix)
        if place is not None and number is not None:
            found.setdefault(place, []).append(number)
    depths = sorted({depth for depth, _ in found})
    kinds = list(dict.fromkeys(kind for _, kind in found))
    means = {place: fmean(numbers) for place, numbers in found.items()}
    return DepthTable(depths, kinds, [[means.get((d, k)) for k in kinds] for d in depths])


def place_of(name: str) -> tuple[int, str] | None:
    """Parse `model.layers.3.mlp.up_proj.weight` as (3, `mlp.up_proj`); None without a layer.

    Further numbers, those of experts, become stars.
    """
    match = re.search(r"(?:^|\.)(\d+)\.(.+)", name)
    if match is None:
        return None
    kind = re.sub(r"\.weight(?=$|\[)", "", match[2])
    return int(match[1]), re.sub(r"(?<=\.)\d+(?=\.)", "*", kind)
