"""Look up names that people type; refuse others with the nearest that is known."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import StrEnum
from typing import TypeVar

from polarlight.registry import fields_of

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


def look_up(name: str, known: Mapping[str, T], thing: str) -> T:
    """Return the entry of this name.

    Raises:
        ValueError: If there is none; the message lists the known names and gives the nearest.
    """
    if name not in known:
        raise unknown(name, known, f"unknown {thing}")
    return known[name]


def option_named(name: str, options: type[E], thing: str) -> E:
    """Return the option of this name.

    Raises:
        ValueError: As `look_up`.
    """
    return look_up(name, {str(option): option for option in options}, thing)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is closest to a mistyped one; None if none is close."""
    return next(iter(get_close_matches(name[:80], list(known), n=1)), None)


def unknown(name: str, known: Iterable[str], what: str) -> ValueError:
    """Return the error: what is wrong with the name, the nearest known one, all of them."""
    names = list(known)
    near = nearest(name, names)
    hint = f" Did you mean {near!r}?" if near else ""
    return ValueError(f"{what} {name!r}.{hint} Known: {', '.join(names)}")


LEGAL: Mapping[str, str] = {
    "scale": "polarlight.stages: Original(), MatchRmsAdamW(), RmsToRms() or Unscaled()",
    "polar": "polarlight.linalg: AutoPolar(), NewtonSchulz(schedules.JORDAN) or QDWH()",
    "solver": "polarlight.rules: WarmPolar(), BalancedPolar(), FeedbackPolar() or ExactBalanced()",
    "side": "polarlight.stages: Side.TALL, Side.WIDE or Side.LONG_AXIS",
    "schedule": "polarlight.linalg: schedules.JORDAN, schedules.QUICK or polar_express(5)",
    "balance": "polarlight.stages: EquilibrateRows(), EquilibrateColumns() or EquilibrateBoth()",
    "momentum": "polarlight.stages: EMA(), HeavyBall(), RawGradient(), InBfloat16(), InInt8() or "
    "OnHost()",
    "power": "polarlight.linalg: RationalPower(6, 4) or ExactPower(-0.5)",
    "size": "polarlight.rules: PolarSize(), MeanNorm(), SumNorm() or OwnSize()",
    "refresh": "polarlight.stages: PowerIteration()",
    "factors": "polarlight.stages.factors: GramFactors() or KLFactors()",
    "orientation": "polarlight.stages: Columns() or Pairs()",
    "view": "polarlight.view: Whole(), Heads(8) or RowBlocks((256, 256))",
}
"""Argument -> objects of polarlight that it takes; never their names as text."""


_OPTIONAL = ("balance", "view")


def check_object(name: str, value: object) -> None:
    """Raise ValueError, with the legal objects, if one of `LEGAL` is given text, a class or None.

    A number too, except for a `power`, which PolarGrad's is.
    """
    wrong = isinstance(value, str | type) or (value is None and name not in _OPTIONAL)
    if wrong or (isinstance(value, int | float) and name != "power"):
        given = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        raise ValueError(f"{name} takes an object, got {given}. Legal, from {LEGAL[name]}")


def check_objects_in(slot: object, called: Mapping[str, str] | None = None) -> None:
    """Check every field of a slot, and of the slots inside it, that is in `LEGAL`.

    Args:
        slot: A dataclass; of anything else there is nothing to check.
        called: Field -> the argument that it comes from, where that is called otherwise.
    """
    for f in fields_of(type(slot)):
        value = getattr(slot, f.name)
        name = (called or {}).get(f.name, f.name)
        if name in LEGAL:
            check_object(name, value)
        for part in value if isinstance(value, tuple) else (value,):
            check_objects_in(part)
