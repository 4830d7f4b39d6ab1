"""Every rule of the package, found by its annotation, with every solver and balance it can take."""

import dataclasses
import inspect
from itertools import chain

import polarlight
from polarlight import rules
from polarlight.rule import UpdateRule

EXACT = polarlight.ExactPolar()


def _plain():
    """One rule per public function that returns an `UpdateRule`."""
    for name in rules.__all__:
        make = getattr(rules, name)
        if inspect.isfunction(make) and inspect.signature(make).return_annotation is UpdateRule:
            yield name, make


def _exact(make):
    """The rule with an exact polar method, so that float64 comparisons are sharp."""
    if "polar" in inspect.signature(make).parameters:
        return make(polar=EXACT)
    return make()


def solvers():
    """Every solver class of the package: a public dataclass with a polar method."""
    for name in rules.__all__:
        found = getattr(rules, name)
        if dataclasses.is_dataclass(found) and "polar" in {
            f.name for f in dataclasses.fields(found)
        }:
            yield name, found(polar=EXACT)


def _variants():
    for name, solver in solvers():
        for side in polarlight.Side:
            yield f"aurora-{name}-{side.value}", polarlight.aurora(solver, side=side)
    balances = [
        polarlight.EquilibrateColumns(),
        polarlight.EquilibrateBoth(),
        polarlight.rows_after(2),
    ]
    for balance in balances:
        yield f"muoneq-{type(balance).__name__}", polarlight.muoneq(balance, polar=EXACT)


RULES: dict[str, UpdateRule] = dict(
    chain(((name, _exact(make)) for name, make in _plain()), _variants())
)
SHIPPED: dict[str, UpdateRule] = {name: make() for name, make in _plain()}
"""The rules as users get them, with their default polar methods."""
