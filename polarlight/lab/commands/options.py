"""Command-line text as values; an error names the value and the legal ones."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from polarlight.lab.train.model_config import Architecture, Mlp
from polarlight.lab.train.recipes import recipe_of
from polarlight.lab.train.settings import PRESETS, Plan, with_changes
from polarlight.lookup import look_up, option_named, unknown


def optimizers(text: str) -> list[str]:
    """Parse `adamw,muon` as names of recipes, each known and none twice."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError("--optimizers needs at least one name, such as adamw,muon,aurora")
    for name in names:
        recipe_of(name)
        if names.count(name) > 1:
            raise ValueError(f"optimizer {name!r} is listed twice")
    return names


def architecture(text: str | None) -> Architecture | None:
    """Parse `moe` as an architecture; None leaves it to the preset."""
    if text is None:
        return None
    return option_named(text, Architecture, "model")


def sweep(texts: Sequence[str]) -> dict[str, list[float]]:
    """Parse `["lr=0.01,0.02"]` as `{"lr": [0.01, 0.02]}`."""
    found = {}
    for text in texts:
        name, values = _assignment(text, "--sweep", "lr=0.01,0.02")
        try:
            found[name] = [float(value) for value in values.split(",")]
        except ValueError:
            raise ValueError(f"--sweep {text!r}: every value of {name} must be a number") from None
    return found


def plan(preset: str, settings: Sequence[str], changes: Mapping[str, Any]) -> Plan:
    """Return the preset with `--set NAME=VALUE` applied, then `changes` that are not None."""
    base = look_up(preset, PRESETS, "preset")
    given = {name: value for name, value in changes.items() if value is not None}
    return with_changes(base, dict(_setting(text, base) for text in settings) | given)


def require_gpu(preset: str, device: str, *, small: str, anyway: str) -> None:
    """Refuse a preset for a GPU where there is none, unless a device is named.

    Raises:
        ValueError: If there is none; the message has the presets `small` and the option `anyway`.
    """
    if device == "auto" and not torch.cuda.is_available():
        raise ValueError(
            f"--preset {preset} is meant for a GPU and none was found; choose --preset {small}, or "
            f"add {anyway} to train it on the CPU anyway"
        )


def new_folder(path: Path | None) -> Path | None:
    """Return the path of a folder that exists or can be made; refuse any other.

    Raises:
        ValueError: If it, or a part of it, is a file.
    """
    if path is not None:
        there = next((part for part in (path, *path.parents) if part.exists()), None)
        if there is not None and not there.is_dir():
            raise ValueError(f"--out {path}: {there} is a file, expected a folder; choose another")
    return path


def new_file(path: Path | None) -> Path | None:
    """Return the path of a file that can be written; make its folder.

    Raises:
        ValueError: If it is a folder, or a part of it is a file.
    """
    if path is not None:
        if path.is_dir():
            raise ValueError(
                f"{path} is a folder, expected a file to write, such as {path / 'out'}"
            )
        new_folder(path.parent)
    return path


def function_at(text: str) -> Callable[..., Any]:
    """Import the function `module:function`, also from the current folder.

    Raises:
        ValueError: If the text has another form, or there is no such module or function.
    """
    name, _, attribute = text.partition(":")
    if not name or not attribute:
        raise ValueError(f"a target is MODULE:FUNCTION, got {text!r}; such as my_models:on_my_mesh")
    module = module_named(name)
    found = getattr(module, attribute, None)
    if not callable(found):
        known = ", ".join(sorted(k for k, v in vars(module).items() if callable(v)))
        raise ValueError(f"{name} has no function {attribute!r}; it has: {known or 'none'}")
    function: Callable[..., Any] = found
    return function


def module_named(name: str) -> ModuleType:
    """Import a module, also from the current folder.

    Raises:
        ValueError: If there is none.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and one that it imports is not
        raise ValueError(
            f"there is no module {error.name!r} in {Path.cwd()} or among the installed packages; "
            "run the command in the folder of the module, or set PYTHONPATH"
        ) from error


def json_in(path: Path, option: str) -> Any:
    """Read a JSON file of the user's.

    Raises:
        ValueError: If it is none.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{option} {path} is not JSON ({error}); expected text") from error


def _setting(text: str, base: Plan) -> tuple[str, Any]:
    name, value = _assignment(text, "--set", "batch=32")
    names = [field.name for field in fields(Plan)]
    if name not in names:
        raise unknown(name, names, "--set: unknown name")
    return name, _parsed(text, value, getattr(base, name))


def _parsed(text: str, value: str, like: object) -> Any:
    """Parse a value as the type of the preset's; None stands for an optional count."""
    kind: Any = int if like is None else type(like)
    try:
        if kind is bool:
            return {"true": True, "yes": True, "false": False, "no": False}[value.lower()]
        return whole_number(value) if kind is int else kind(value)
    except (ValueError, KeyError):
        choices = {kind: " or ".join(kind) for kind in (Mlp, Architecture)}
        wanted = ({bool: "true or false"} | choices).get(kind, kind.__name__)
        raise ValueError(f"--set {text!r}: expected {wanted}, got {value!r}") from None


def whole_number(text: str) -> int:
    """Parse `32`, `1e4` or `1_000` as an integer.

    Raises:
        ValueError: If it is none.
    """
    if not set(text) & set(".eE"):
        return int(text)
    if not float(text).is_integer():
        raise ValueError(f"expected a whole number, got {text!r}")
    return int(float(text))


def _assignment(text: str, option: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ValueError(f"{option} takes NAME=VALUE, such as {example}; got {text!r}")
    return name.strip(), value.strip()
