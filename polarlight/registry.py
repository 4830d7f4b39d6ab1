"""Stable names of rules, slots and views, for checkpoints.

A checkpoint names what it was written under. Classes may be renamed and modules moved; the name
that a class registers stays. What a change of a field means to saved buffers is declared beside it.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, TypeVar

import torch

from polarlight.lookup import arguments_checked

C = TypeVar("C", bound=type)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """Name and version of a class, and which of its fields leave the meaning of its state alone.

    Attributes:
        cls: The class.
        name: Name in checkpoints; never changed.
        version: Raised when a default changes.
        stateful: Whether the class keeps buffers of its own.
        may_differ: Fields that may differ from the saved ones although buffers are kept here or in
            a field. Where no buffer is kept, every field may.
        lays_out: Fields that say how a matrix is laid out for the buffers of the slot inside.
        former_defaults: Version -> field -> default of that version, where it differs now.
        renamed: Former field name -> present name.
        removed: Former field names that mean nothing any more; saved values are ignored.
        former_names: Class names in state dicts of 0.1.0, which hold the `repr` of a rule.
        registered: Whether the name was chosen; else it is the class's qualified name.
    """

    cls: type
    name: str
    version: int = 1
    stateful: bool = False
    may_differ: frozenset[str] = frozenset()
    lays_out: tuple[str, ...] = ()
    former_defaults: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()
    former_names: tuple[str, ...] = ()
    registered: bool = True

    def defaults(self, version: int) -> dict[str, Any]:
        """Return the default of every field that had one in this version."""
        found = {f.name: _default(f) for f in fields_of(self.cls)}
        for older in range(self.version - 1, version - 1, -1):
            found |= self.former_defaults.get(older, {})
        return {name: value for name, value in found.items() if value is not dataclasses.MISSING}


_BY_CLASS: dict[type, Registration] = {}
_BY_NAME: dict[str, Registration] = {}


def registered(
    name: str,
    *,
    version: int = 1,
    stateful: bool = False,
    may_differ: tuple[str, ...] = (),
    lays_out: tuple[str, ...] = (),
    former_defaults: Mapping[int, Mapping[str, Any]] | None = None,
    renamed: Mapping[str, str] | None = None,
    removed: tuple[str, ...] = (),
    former_names: tuple[str, ...] = (),
) -> Callable[[C], C]:
    """Register a dataclass under a stable name and check its fields (`arguments_checked`).

    Arguments are those of `Registration`.

    Raises:
        ValueError: If another class has the name, `may_differ` names no field, or `removed` one.
    """

    def register(cls: C) -> C:
        known = {f.name for f in fields_of(cls)}
        if wrong := sorted({*may_differ, *lays_out, *(renamed or {}).values()} - known):
            raise ValueError(f"{cls.__qualname__} has no field {wrong}; its fields: {known}")
        if there := sorted(known & set(removed)):
            raise ValueError(f"{cls.__qualname__} still has the removed fields {there}")
        _add(
            Registration(
                cls=cls,
                name=name,
                version=version,
                stateful=stateful,
                may_differ=frozenset(may_differ),
                lays_out=lays_out,
                former_defaults=former_defaults or {},
                renamed=renamed or {},
                removed=frozenset(removed),
                former_names=former_names,
            )
        )
        return arguments_checked(cls)

    return register


def registration_of(cls: type, *, stateful: bool) -> Registration:
    """Return the registration of a class; one that has none is known by its qualified name.

    Args:
        cls: The class.
        stateful: Whether an unregistered class keeps buffers.
    """
    if cls not in _BY_CLASS:
        name = cls.__qualname__
        if name in _BY_NAME and _BY_NAME[name].registered:  # of the same name by chance
            name = f"{name} (unregistered)"
        entry = Registration(cls=cls, name=name, stateful=stateful, registered=False)
        _BY_CLASS[cls] = entry
        _BY_NAME.setdefault(name, entry)
    return _BY_CLASS[cls]


def registration_named(name: str) -> Registration | None:
    """Return the registration of this name, or of the class that had it in 0.1.0."""
    return _BY_NAME.get(name)


def fields_of(cls: type) -> Iterator[dataclasses.Field[Any]]:
    """Return the fields by which objects of a dataclass compare; none of another class."""
    if dataclasses.is_dataclass(cls):
        yield from (f for f in dataclasses.fields(cls) if f.compare)


def loadable(cls: C) -> C:
    """Let `torch.load(..., weights_only=True)` read objects of a class, as torch does for DTensor.

    `SpectralOptimizer` saves rules and views as text. torch's wrappers, which save param groups of
    their own (`ZeroRedundancyOptimizer`), put the objects into a file. Only for classes of values,
    whose construction does nothing else; every registered class is one.
    """
    torch.serialization.add_safe_globals([cls])
    return cls


def _add(entry: Registration) -> None:
    for name in (entry.name, *entry.former_names):
        there = _BY_NAME.get(name)
        again = there and there.cls.__qualname__ == entry.cls.__qualname__  # as on reload
        if there and not again:
            raise ValueError(f"{name!r} is registered by {there.cls!r}: choose another name")
        _BY_NAME[name] = entry
    _BY_CLASS[entry.cls] = entry
    loadable(entry.cls)


def _default(f: dataclasses.Field[Any]) -> Any:
    factory = f.default_factory
    return f.default if factory is dataclasses.MISSING else factory()


def stable_text(value: object) -> str:
    """Return a text of a rule, slot or view that is equal on every process with an equal value.

    Functions are named by module, name and the plain values that they close over, dataclasses by
    the fields that they compare by.

    Raises:
        ValueError: If the text of an object would be its address.
    """
    if isinstance(value, partial | Mapping | set | frozenset | tuple | list):
        return _container_text(value)
    if isinstance(value, MethodType | FunctionType | BuiltinFunctionType | type):
        return _function_text(value)
    if isinstance(value, torch.Tensor):
        return f"Tensor({tuple(value.shape)}, {value.dtype})"
    if dataclasses.is_dataclass(type(value)):
        fields = (f"{f.name}={stable_text(getattr(value, f.name))}" for f in fields_of(type(value)))
        return f"{type(value).__qualname__}({', '.join(fields)})"
    return _own_text(value)


def _container_text(value: Any) -> str:
    """Return the stable text of a container, by its items."""
    if isinstance(value, partial):
        return f"partial{stable_text((value.func, value.args, value.keywords))}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k!r}: {stable_text(x)}' for k, x in value.items())}}}"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(stable_text, value)))}}}"
    return f"({', '.join(map(stable_text, value))})"


def _function_text(value: Any) -> str:
    """Return the module and name of a function or class, with plain values that it closes over."""
    if isinstance(value, MethodType):
        return f"{stable_text(value.__self__)}.{value.__name__}"
    inside = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    plain = [x for x in inside if isinstance(x, bool | int | float | str | Enum)]
    return f"{value.__module__}.{value.__qualname__}{plain or ''}"


def _own_text(value: object) -> str:
    """Return the `repr` of an object; its class's name if it has no attributes and no `repr`."""
    text = repr(value)
    if not re.search(r" at 0x[0-9a-fA-F]+", text):
        return text
    if type(value).__repr__ is object.__repr__ and not getattr(value, "__dict__", None):
        return type(value).__qualname__
    raise ValueError(
        f"{text} has no text of its own, by which processes and checkpoints could tell it from "
        "another one: make its class a frozen dataclass, or give it a __repr__ that shows its "
        "attributes"
    )
