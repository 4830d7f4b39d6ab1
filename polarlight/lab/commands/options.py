"""What people type, turned into values; every refusal names the value and what would be right."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from polarlight.lab.train.model_config import Architecture, Mlp
from polarlight.lab.train.recipes import recipe_of
from polarlight.lab.train.settings import PRESETS, Plan, with_changes
from polarlight.lookup import unknown


def optimizers(text: str) -> list[str]:
    """`adamw,muon` as names of recipes, each known and none twice."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError("--optimizers needs at least one name, such as adamw,muon,aurora")
    for name in names:
        recipe_of(name)
        if names.count(name) > 1:
            raise ValueError(f"optimizer {name!r} is listed twice")
    return names


def architecture(text: str | None) -> Architecture | None:
    """`moe` as an architecture; None stays None and leaves it to the preset."""
    if text is None:
        return None
    if text not in set(Architecture):
        raise ValueError(f"unknown model {text!r}; choose from {', '.join(Architecture)}")
    return Architecture(text)


def sweep(texts: Sequence[str]) -> dict[str, list[float]]:
    """`["lr=0.01,0.02"]` as `{"lr": [0.01, 0.02]}`."""
    found = {}
    for text in texts:
        name, values = _assignment(text, "--sweep", "lr=0.01,0.02")
        try:
            found[name] = [float(value) for value in values.split(",")]
        except ValueError:
            raise ValueError(f"--sweep {text!r}: every value of {name} must be a number") from None
    return found


def plan(preset: str, settings: Sequence[str], changes: Mapping[str, Any]) -> Plan:
    """The preset with `--set NAME=VALUE` applied, then `changes` that are not None."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose from {', '.join(PRESETS)}")
    base = PRESETS[preset]
    given = {name: value for name, value in changes.items() if value is not None}
    return with_changes(base, dict(_setting(text, base) for text in settings) | given)


def _setting(text: str, base: Plan) -> tuple[str, Any]:
    name, value = _assignment(text, "--set", "batch=32")
    names = [field.name for field in fields(Plan)]
    if name not in names:
        raise unknown(name, names, "--set: unknown name")
    return name, _parsed(text, value, getattr(base, name))


def _parsed(text: str, value: str, like: object) -> Any:
    """The value in the type of the preset's; None stands for an optional count."""
    kind: Any = int if like is None else type(like)
    try:
        if kind is bool:
            return {"true": True, "yes": True, "false": False, "no": False}[value.lower()]
        return kind(value)
    except (ValueError, KeyError):
        choices = {kind: " or ".join(kind) for kind in (Mlp, Architecture)}
        wanted = ({bool: "true or false"} | choices).get(kind, kind.__name__)
        raise ValueError(f"--set {text!r}: expected {wanted}, got {value!r}") from None


def _assignment(text: str, option: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ValueError(f"{option} takes NAME=VALUE, such as {example}; got {text!r}")
    return name.strip(), value.strip()
