"""Nested records as one flat dict of numbers, for services that plot one curve per name."""

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

Records = Mapping[str, Mapping[str, Any]]


def flat(records: Records, prefix: str = "neurons", *, layers: bool = True) -> dict[str, float]:
    """`neurons/mean/update/spread` and, for every name, `neurons/NAME/update/spread`; no lists.

    Args:
        records: What a probe hands to its sink.
        prefix: Stands before every name.
        layers: Whether every matrix has curves of its own, beside the mean over those that tell.
    """
    found = {name: dict(_leaves(record)) for name, record in records.items()}
    keys = dict.fromkeys(key for leaves in found.values() for key in leaves)
    means = {
        f"{prefix}/mean/{key}": fmean(x[key] for x in found.values() if key in x) for key in keys
    }
    own = {f"{prefix}/{name}/{key}": x for name, ls in found.items() for key, x in ls.items()}
    return means | own if layers else means


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}/")
        elif isinstance(value, int | float):
            yield path + key, float(value)
