"""Look up names that people type, and check arguments where they are given.

An unknown name is refused with the nearest that is known, any other argument with its name, its
value and what fits: at the call, not in the first step that uses it.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from enum import StrEnum
from inspect import signature
from math import inf
from numbers import Integral, Real
from typing import Any, TypeVar

from torch import Tensor

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


class Option(StrEnum):
    """Base of options that are given by name: an unknown one is refused with all that are known."""

    @classmethod
    def _missing_(cls, value: object) -> None:
        named = [str(option) for option in cls if str(option)]
        near = nearest(value, named) if isinstance(value, str) else None
        hint = f" Did you mean {near!r}?" if near else ""
        raise ValueError(
            f"{described(value)} is not a valid {cls.__name__}.{hint} Legal: {', '.join(named)}"
        )


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


def described(value: object) -> str:
    """Return a value as text for an error: a class as such, by its type what has no short text."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text, kind = repr(value), type(value).__name__
    if len(text) > 60 or "\n" in text or " at 0x" in text:
        return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"
    return text


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless an argument is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be an integer >= {least}, got {described(value)}")
    if int(value) < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")


def check_number(name: str, value: Any, legal: str = "") -> None:
    """Raise ValueError unless an argument is a number, or a tensor of one element.

    Args:
        name: The argument's.
        value: Its value.
        legal: The range, for the message; what is outside of it is not refused here.
    """
    if isinstance(value, str):
        raise ValueError(f"{name} must be a number, got the text {value!r}")
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"a tensor {name} must have 1 element, got shape {tuple(value.shape)}")
    elif not isinstance(value, Real):
        raise ValueError(f"{name} must be a number{legal}, got {described(value)}")


def check_rate(name: str, value: Any) -> None:
    """Raise ValueError unless an argument is a number in [0, inf): a learning rate, a decay."""
    check_number(name, value, " >= 0")
    if not value >= 0:
        raise ValueError(f"{name} must be >= 0, got {value}")
    if value == inf:
        raise ValueError(f"{name} must be finite, got {value}")


def check_fraction(name: str, value: Any) -> None:
    """Raise ValueError unless an argument is a number in [0, 1): the decay of an average."""
    check_number(name, value, " in [0, 1)")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")


def check_betas(name: str, value: Any) -> None:
    """Raise ValueError unless an argument is a pair of numbers in [0, 1)."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(
            f"{name} must be two numbers in [0, 1), such as (0.9, 0.95), got {described(value)}"
        )
    for i, beta in enumerate(value):
        check_fraction(f"{name}[{i}]", beta)


def check_callable(name: str, value: object, arguments: str, fits: str) -> None:
    """Raise TypeError unless an argument can be called with these; a class is refused.

    Args:
        name: The argument's.
        value: Its value.
        arguments: What it is called with, as `step, records`.
        fits: Examples of what can be given.
    """
    expected = f"{name} must be callable as {name}({arguments}), such as {fits}"
    if isinstance(value, type) or not callable(value):
        raise TypeError(f"{expected}; got {described(value)}")
    try:
        form = signature(value)
    except ValueError:  # builtins may have none
        return
    try:
        form.bind(*arguments.split(", "))
    except TypeError as error:
        raise TypeError(f"{expected}; got {described(value)} of {form}") from error


def check_overrides(overrides: object) -> None:
    """Raise TypeError unless the argument `overrides` is a mapping, or None."""
    if overrides is not None and not isinstance(overrides, Mapping):
        raise TypeError(
            "overrides must map roles or name patterns to Routes, rules or Roles, such as "
            f"{{'*.layers.0.*': polarlight.Route(lr=1e-3)}}, got {described(overrides)}"
        )


def check_groups(function: str, groups: Any) -> list[Any]:
    """Return the param groups that were given to a function; raise TypeError for anything else."""
    found: list[Any] = list(groups) if isinstance(groups, Iterable) else []
    if not all(isinstance(group, Mapping) for group in found) or isinstance(groups, str | Mapping):
        found = []
    if not found and not (isinstance(groups, Sequence) and len(groups) == 0):
        is_optimizer = hasattr(groups, "param_groups") and not isinstance(groups, type)
        raise TypeError(
            f"{function} takes param groups, dicts with 'params', got {described(groups)}; give "
            + (".param_groups of it" if is_optimizer else "optimizer.param_groups")
        )
    return found


def check_optimizer(function: str, optimizer: Any, *, hooked: bool = False) -> None:
    """Raise TypeError unless the argument of a function is an optimizer, or a wrapper of one.

    Args:
        function: The function's name.
        optimizer: The argument.
        hooked: The function registers step hooks, which wrappers such as accelerate's have not.
    """
    if isinstance(optimizer, type) or not hasattr(optimizer, "param_groups"):
        raise TypeError(
            f"{function} takes an optimizer, which has .param_groups, got {described(optimizer)}; "
            "give the optimizer"
        )
    if hooked and not hasattr(optimizer, "_optimizer_step_post_hooks"):
        raise TypeError(
            f"{function} registers step hooks, which {described(optimizer)} does not have; give "
            "the optimizer inside of it, usually .optimizer"
        )
