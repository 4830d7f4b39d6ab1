"""Fingerprint of a rule or view in a checkpoint: registered names, versions, differing fields.

    {"method": "muon", "version": 1, "slots": {"momentum": {"method": "EMA", "version": 1,
     "fields": {"nesterov": false}}, "map": {"method": "AutoPolar", ...}, "scale": ...}}

It is JSON text, so that `torch.load(weights_only=True)` reads it and a distributed checkpoint takes
it as one entry. A field is stored only if it differs from the default of the stored version. State
dicts of 0.1.0 hold the `repr` instead, which is parsed and never evaluated.
"""

import ast
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache, lru_cache, partial
from types import BuiltinFunctionType, FunctionType
from typing import Any, TypeGuard

import torch

from polarlight.linalg import schedules
from polarlight.linalg.coefficients import Schedule
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.slot import Stage
from polarlight.registry import fields_of, registration_named, registration_of
from polarlight.rule import ElementwiseRule, Momentum, UpdateRule
from polarlight.view import Whole

Config = dict[str, Any]
"""`method`, `version`, and `fields` or, of an `UpdateRule`, `slots`."""

_SLOTS = tuple(f.name for f in dataclasses.fields(UpdateRule) if f.name != "name")
_DIGITS = 10
_GENERATED = r"(cubic )?polar express x(\d{1,2})(?: from ([\d.e-]+))?(?:, safety ([\d.]+))?"
_CONTENT = ("slots", "fields")


@dataclass(frozen=True, slots=True)
class FieldDifference:
    """Difference between a saved configuration and the optimizer's in one field.

    Attributes:
        field: Path of the field, such as `map.schedule`.
        saved: Saved value, as text.
        now: Value of the optimizer, as text.
        harmless: Whether saved buffers mean the same under both.
    """

    field: str
    saved: str
    now: str
    harmless: bool

    def __str__(self) -> str:
        """Return the difference as one line of a message."""
        return f"{self.field}: saved {self.saved}, optimizer {self.now}"


def fingerprint(value: object) -> str:
    """Return the configuration of a rule or view as JSON text, for a state dict."""
    return json.dumps(config_of(value))


def config_of(value: object) -> Config:
    """Return the configuration of a rule or view as nested dicts; None stands for `Whole()`."""
    if value is None:
        value = Whole()
    if isinstance(value, UpdateRule):
        slots = {name: _encoded(getattr(value, name)) for name in _SLOTS}
        kept = {name: slot for name, slot in slots.items() if slot not in (None, [])}
        return {"method": value.name, "version": 1, "slots": kept}
    return _object_config(value)


def read_fingerprint(saved: object) -> Config:
    """Return the configuration in a fingerprint or 0.1.0 `repr`; other text becomes its method.

    Args:
        saved: Text of `fingerprint`, the `repr` that 0.1.0 wrote, or a rule or view itself, as
            wrappers keep it that gather groups without `state_dict`.
    """
    if not isinstance(saved, str):
        return config_of(saved)
    try:
        config = (
            json.loads(saved) if saved.startswith("{") else _parse_repr(ast.parse(saved).body[0])
        )
        if config is None:
            return config_of(None)
        if _is_config(config):
            return config
    except (LookupError, RecursionError, SyntaxError, TypeError, ValueError):
        pass  # some other text, which differs from every fingerprint
    return {"method": saved, "version": 1, "fields": {}}


def _is_config(value: object) -> TypeGuard[Config]:
    """Return whether a value is a well-formed configuration, with all configurations in it."""
    if not isinstance(value, dict):
        return False
    content = [value.get(key) for key in _CONTENT]
    return (
        isinstance(value.get("method"), str)
        and isinstance(value.get("version"), int)
        and sum(isinstance(fields, dict) for fields in content) == 1
        and all(map(_has_only_configs, _fields_or_slots(value).values()))
    )


def _has_only_configs(value: object) -> bool:
    """Return whether a value's dicts, in lists too, are all well-formed configurations."""
    if isinstance(value, list):
        return all(map(_has_only_configs, value))
    return _is_config(value) if isinstance(value, dict) else True


def differences(saved: object, now: object, where: str = "") -> Iterator[FieldDifference]:
    """Yield the differing fields of two configurations, defaults filled in; `where`: their path."""
    if isinstance(saved, dict) and isinstance(now, dict) and _are_comparable(saved, now):
        yield from _fields_that_differ(saved, now, where)
    elif _are_slots(saved) and _are_slots(now) and len(saved) == len(now):
        for i, (a, b) in enumerate(zip(saved, now, strict=True)):
            yield from differences(a, b, f"{where}[{i}]")
    elif saved != now:
        harmless = bool(where) and not keeps_state(saved) and not keeps_state(now)
        texts = _schedule_name(saved), _schedule_name(now)
        if None in texts or texts[0] == texts[1]:
            texts = _python_text(saved), _python_text(now)
        yield FieldDifference(where or "method", str(texts[0]), str(texts[1]), harmless)


def keeps_state(value: object) -> bool:
    """Return whether a configuration or a nested one has buffers; True for an unknown method."""
    if isinstance(value, list):
        return any(map(keeps_state, value))
    if not isinstance(value, dict):
        return False
    known = registration_named(value["method"])
    own = "fields" in value and (known is None or known.stateful)
    return own or any(map(keeps_state, _fields_or_slots(value).values()))


def _fields_that_differ(saved: Config, now: Config, where: str) -> Iterator[FieldDifference]:
    """Yield the differing fields of two configurations of one method; `where`: their path."""
    known = registration_named(now["method"])
    free = "slots" in now or (not keeps_state(saved) and not keeps_state(now))
    saved_fields, fields = completed_fields(saved), completed_fields(now)
    for key in {**fields, **saved_fields}:
        a, b = saved_fields.get(key), fields.get(key)
        path = f"{where}.{key}" if where else key
        may_differ = free or (known is not None and key in known.may_differ)
        for found in differences(a, b, path):
            judged_below = found.field != path and keeps_state(b)  # inside a slot with state
            yield found if may_differ or judged_below else replace(found, harmless=False)


def _are_slots(value: object) -> TypeGuard[list[Config]]:
    """Return whether a value is a list of dicts: the configurations of `post`."""
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _are_comparable(saved: Config, now: Config) -> bool:
    """Return whether to compare two configurations field by field, not as a whole.

    Those of one method are; of schedules only equal ones, since a name stands for coefficients.
    """
    if _method_name(saved) != _method_name(now):
        return False
    if _method_name(now) != ("Schedule", False):
        return True
    named = [("steps" in _fields_or_slots(config)) for config in (saved, now)]
    return named[0] == named[1] and completed_fields(saved) == completed_fields(now)


def _method_name(config: Config) -> tuple[str, bool]:
    """Return (present name of the method, whether it is an `UpdateRule`) of a configuration."""
    known = registration_named(config["method"])
    name = known.name if known and "fields" in config else config["method"]
    return name, "slots" in config


def _fields_or_slots(config: Config) -> dict[str, Any]:
    """Return the stored fields or slots of a configuration."""
    return next((config[key] for key in _CONTENT if key in config), {})


def completed_fields(config: Config) -> dict[str, Any]:
    """Return a configuration's fields or slots under present names, defaults for absent ones."""
    content = _fields_or_slots(config)
    known = None if "slots" in config else registration_named(config["method"])
    if known is None:
        return {"post": [], "balance": None, **content} if "slots" in config else content
    kept = {key: value for key, value in content.items() if key not in known.removed}
    stored = {known.renamed.get(key, key): value for key, value in kept.items()}
    return _defaults(known.cls, config["version"]) | stored


@cache
def _defaults(cls: type, version: int) -> dict[str, Any]:
    """Return {field: default} of a registered class in a version, encoded; cached."""
    defaults = registration_of(cls, stateful=False).defaults(version)
    return {key: _encoded(value) for key, value in defaults.items()}


def _encoded(value: Any) -> Any:
    """Return a field's value as JSON types: numbers, text, lists, or a configuration."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, partial):
        value = (value.func, value.args, value.keywords)
    value = tuple(value.items()) if isinstance(value, Mapping) else value
    if isinstance(value, frozenset):
        return sorted(map(str, value))
    if isinstance(value, tuple | list):
        return [_encoded(item) for item in value]
    if isinstance(value, FunctionType | BuiltinFunctionType | type):
        return value.__qualname__
    return _object_config(value)


def _object_config(value: Any) -> Config:
    """Return the configuration of a slot, momentum, view or schedule, without default fields."""
    cls = type(value)
    stateful = isinstance(value, Stage | ElementwiseRule)
    stateful = stateful or (isinstance(value, Momentum) and value.buffered)
    known = registration_of(cls, stateful=stateful)
    if isinstance(value, Schedule):
        fields = _schedule_fields(value)
    elif dataclasses.is_dataclass(cls):
        fields = {f.name: _encoded(getattr(value, f.name)) for f in fields_of(cls)}
        defaults = _defaults(cls, known.version)
        fields = {k: v for k, v in fields.items() if k not in defaults or v != defaults[k]}
    else:
        own_text = repr(value) != object.__repr__(value)  # which is an address
        fields = {"repr": repr(value)} if own_text else {}
    return {"method": known.name, "version": known.version, "fields": fields}


@lru_cache
def _schedule_fields(schedule: Schedule) -> dict[str, Any]:
    """Return a schedule's fields, encoded; {"name": name} if it is one of the package's; cached."""
    fields = {f.name: _encoded(getattr(schedule, f.name)) for f in fields_of(Schedule)}
    return _short_schedule(fields | {"steps": _rounded(schedule.steps)})


def _short_schedule(fields: dict[str, Any]) -> dict[str, Any]:
    """Return {"name": name} if the package has an equal schedule of that name; else `fields`."""
    published = _schedule_named(fields["name"])
    if published is None:
        return fields
    theirs = {"steps": _rounded(published.steps), "safety": published.safety}
    theirs["normalisation"] = _encoded(published.normalisation)
    same = all(fields.get(key, value) == value for key, value in theirs.items())
    return {"name": fields["name"]} if same else fields


def _rounded(steps: Any) -> list[list[float]]:
    """Return the coefficients of a schedule's steps as lists, to ten significant digits."""
    return [[float(f"{x:.{_DIGITS}g}") for x in step] for step in steps]


@lru_cache
def _schedule_named(name: str) -> Schedule | None:
    """Return the package's schedule of this name, or the `polar_express` it denotes; else None."""
    for value in vars(schedules).values():
        if isinstance(value, Schedule) and value.name == name:
            return value
    made = re.fullmatch(_GENERATED, name)
    if made is None:
        return None
    try:
        given = {"lower": made[3], "safety": made[4]}
        options: dict[str, Any] = {key: float(x) for key, x in given.items() if x}
        return polar_express(int(made[2]), degree=3 if made[1] else 5, **options)
    except (ArithmeticError, ValueError):  # a custom one of a similar name
        return None


def _parse_repr(node: ast.AST) -> Any:
    """Return the plain data in the syntax tree of a 0.1.0 `repr`; raise ValueError for others."""
    match node:
        case ast.Expr(value=inner):
            return _parse_repr(inner)
        case ast.Constant(value=None | bool() | int() | float() | str()):
            return node.value
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [_parse_repr(item) for item in items]
        case ast.Attribute(attr=name):  # torch.float64, Side.TALL
            return name
        case ast.Name(id="inf" | "nan"):
            return float(node.id)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() | ast.Name() as operand):
            return -_parse_repr(operand)
        case ast.Call(func=func, args=[], keywords=keywords):
            fields = {str(keyword.arg): _parse_repr(keyword.value) for keyword in keywords}
            return _repr_call_config(ast.unparse(func), fields)
    raise ValueError(f"{ast.unparse(node)} is no repr of a rule or view")


def _repr_call_config(name: str, fields: dict[str, Any]) -> Config:
    """Return the configuration, of version 1, of `name(**fields)` in a `repr` of 0.1.0."""
    if name == "UpdateRule":
        slots = {key: value for key, value in fields.items() if key != "name"}
        return {"method": fields["name"], "version": 1, "slots": slots}
    if name == "Schedule":  # its text had no normalisation
        fields = _short_schedule(fields | {"steps": _rounded(fields["steps"])})
    known = registration_named(name)
    return {"method": known.name if known else name, "version": 1, "fields": fields}


def _schedule_name(value: object) -> str | None:
    """Return a schedule configuration's name in quotes; None for any other value."""
    if isinstance(value, dict) and _method_name(value) == ("Schedule", False):
        return repr(_fields_or_slots(value)["name"])
    return None


def _python_text(value: object) -> str:
    """Return plain data as Python text, for messages."""
    if isinstance(value, list):
        return f"({', '.join(map(_python_text, value))})"
    if not isinstance(value, Mapping):
        return repr(value)
    if "slots" in value:
        return str(value["method"])
    fields = (f"{key}={_python_text(x)}" for key, x in value["fields"].items() if x is not None)
    return f"{value['method']}({', '.join(fields)})"
