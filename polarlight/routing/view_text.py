"""Views as text: a JSON-able form that is read back, and the call that makes them.

{"view": "Heads", "count": 4, "dim": -2, "inner": {"view": "Whole"}}        Heads(4)
"""

from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args

from polarlight.lookup import look_up
from polarlight.view import (
    Flattened,
    Heads,
    Interleaved,
    MatrixView,
    RowBlocks,
    Slices,
    Taps,
    Transposed,
    Whole,
)

VIEWS = {
    view.__name__: view
    for view in (Whole, RowBlocks, Heads, Interleaved, Slices, Transposed, Flattened, Taps)
}
"""The views that can be read back, by name."""


def view_to_json(view: Any) -> dict[str, Any]:
    """Return a view as dicts, lists, strings and numbers; `view_from_json` is the inverse.

    Raises:
        ValueError: If the view is not one of this package.
    """
    if VIEWS.get(type(view).__name__) is not type(view):
        raise ValueError(f"{view!r} is none of the views {', '.join(VIEWS)}")
    values = {field.name: _value_to_json(getattr(view, field.name)) for field in fields(view)}
    return {"view": type(view).__name__, **values}


def view_from_json(data: dict[str, Any]) -> MatrixView:
    """Return the view of its JSON form, in which fields that have a default may be missing.

    Raises:
        ValueError: If the view or an entry is unknown, or a value is out of range.
    """
    name = data.get("view")
    kind = look_up(str(name), VIEWS, "view")
    known = [field.name for field in fields(kind)]
    if unknown := data.keys() - {"view", *known}:
        raise ValueError(f"{kind.__name__} has entries {known}, got {sorted(unknown)}")
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    if missing := needed - data.keys():
        raise ValueError(f"{kind.__name__} needs {sorted(missing)}, got {sorted(data)}")
    values = {k: _value_from_json(v) for k, v in data.items() if k != "view"}
    for field in fields(kind):
        if field.name in values and not _has_type(values[field.name], field.type):
            raise ValueError(
                f"{field.name} of {kind.__name__} must be {_type_name(field.type)}, "
                f"got {data[field.name]!r}"
            )
    view: MatrixView = kind(**values)
    return view


def _has_type(value: Any, kind: Any) -> bool:
    """Return whether a value has a view field's type `kind`: int, view, or tuple of these."""
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is MatrixView:
        return isinstance(value, MatrixView)
    return isinstance(value, tuple) and all(_has_type(item, get_args(kind)[0]) for item in value)


def _type_name(kind: Any) -> str:
    """Return the type of a view's field in words: an integer, a view, or a list of them."""
    if kind in (int, MatrixView):
        return "an integer" if kind is int else "a view"
    return "a list of " + ("integers" if get_args(kind)[0] is int else "views")


def view_call(view: object) -> str:
    """Return a view's constructor call as text, defaults left out: `Heads(4, dim=-1)`."""
    if not is_dataclass(view) or isinstance(view, type):
        return repr(view)
    arguments = []
    for place, field in enumerate(fields(view)):
        value = getattr(view, field.name)
        if field.default is MISSING or value != field.default:
            prefix = f"{field.name}=" if place else ""
            arguments.append(prefix + _value_call(value))
    return f"{type(view).__name__}({', '.join(arguments)})"


def _value_to_json(value: Any) -> Any:
    """Return a view field's value as JSON types; tuples become lists, views dicts."""
    if isinstance(value, tuple):
        return [_value_to_json(item) for item in value]
    return view_to_json(value) if isinstance(value, MatrixView) else value


def _value_from_json(value: Any) -> Any:
    """Return a view field's value from JSON: lists become tuples, dicts views."""
    if isinstance(value, list | tuple):
        return tuple(_value_from_json(item) for item in value)
    return view_from_json(value) if isinstance(value, dict) else value


def _value_call(value: Any) -> str:
    """Return the value of a view's field as Python text, views as their constructor calls."""
    if isinstance(value, tuple):
        items = ", ".join(_value_call(item) for item in value)
        return f"({items},)" if len(value) == 1 else f"({items})"
    return view_call(value)
