"""Optimizer state in a checkpoint: momenta and row scales, by parameter."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from polarlight.lab.inspection.source import Entry
from polarlight.routing.roles.wrappers import without_wrappers

MOMENTA = ("momentum_buffer", "exp_avg")
"""First moments, by polarlight's and torch's names."""
SCALES = ("row_scale",)
"""What Aurora keeps per row: the factor it gave the row before the polar factor."""


class State(NamedTuple):
    """State by parameter name, and notes on what was not found."""

    momenta: dict[str, Entry]
    scales: dict[str, Entry]
    notes: tuple[str, ...]


def entry_of(x: Tensor) -> Entry:
    """Return an entry for a tensor that is already mapped."""
    return Entry(x.shape, x.numel() * x.element_size(), lambda: x)


def state_of(optimizer: Any, weights: Mapping[str, Entry]) -> State:
    """Return momenta and row scales of an optimizer's state dict.

    State is matched by the names in the param groups; without names by order, if all shapes agree.
    """
    state = optimizer.get("state") if isinstance(optimizer, Mapping) else None
    if not isinstance(state, Mapping):
        return State({}, {}, ())
    names = _names(optimizer.get("param_groups", ()))
    moments = _tensors(state, MOMENTA)
    names = names or _by_order({i: moments.get(i) for i in state}, weights)
    momenta, scales = (_named(x, names, weights) for x in (moments, _tensors(state, SCALES)))
    coded = {name for name, entry in momenta.items() if not entry.read().is_floating_point()}
    if coded:  # values depend on the rule that wrote them
        momenta = {name: entry for name, entry in momenta.items() if name not in coded}
        return State(momenta, scales, (f"{len(coded)} momenta are kept as integers: not read",))
    lost = "there is optimizer state, but it names no parameters and its order does not fit"
    return State(momenta, scales, (lost,) if state and not momenta else ())


def _tensors(state: Mapping[Any, Any], keys: tuple[str, ...]) -> dict[Any, Tensor]:
    """Return the first of these entries that each parameter's state has."""
    entries = [(i, entry, k) for i, entry in state.items() if isinstance(entry, Mapping)
               for k in keys]  # fmt: skip
    return {i: entry[k] for i, entry, k in reversed(entries) if isinstance(entry.get(k), Tensor)}


def _named(
    tensors: Mapping[Any, Tensor], names: Mapping[Any, str], weights: Mapping[str, Entry]
) -> dict[str, Entry]:
    return {
        name: entry_of(x)
        for i, x in tensors.items()
        if i in names and (name := _in(weights, names[i]))
    }


def _names(groups: Any) -> dict[Any, str]:
    """Return parameter names by the ids in the groups; state dicts keyed by name keep them."""
    found: dict[Any, str] = {}
    for group in _listed(groups):
        entries = group if isinstance(group, Mapping) else {}
        ids = [i for i in _listed(entries.get("params")) if isinstance(i, int | str)]
        named = [n for n in _listed(entries.get("param_names")) or ids if isinstance(n, str)]
        if len(named) == len(ids):
            found |= dict(zip(ids, named, strict=True))
    return found


def _listed(value: Any) -> Sequence[Any]:
    """Return a list or tuple as it is; an empty list for anything else."""
    return value if isinstance(value, list | tuple) else ()


def _by_order(moments: Mapping[Any, Tensor | None], weights: Mapping[str, Entry]) -> dict[Any, str]:
    if len(moments) != len(weights) or not all(isinstance(i, int) for i in moments):
        return {}
    ordered = sorted(moments)
    pairs = dict(zip(ordered, weights, strict=True))
    fits = all(x is None or x.shape == weights[pairs[i]].shape for i, x in moments.items())
    return pairs if fits else {}


def _in(weights: Mapping[str, Entry], name: str) -> str:
    """Return the weight's name without wrappers' prefixes; empty if there is none."""
    if name in weights:
        return name
    plain = without_wrappers(name)
    return plain if plain in weights else ""
