"""Look up names that people type, and check arguments where they are given.

An unknown name is refused with the nearest that is known, any other argument with its name, its
value and what fits: at the call, not in the first step that uses it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import wraps
from inspect import Parameter, get_annotations, signature
from math import inf
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin

from torch import Tensor
from torch.compiler import is_compiling

E = TypeVar("E", bound=StrEnum)
F = TypeVar("F", bound=Callable[..., Any])
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
    for f in fields(slot) if is_dataclass(slot) and not isinstance(slot, type) else ():
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


def arguments_checked(target: F) -> F:
    """Let a class or function refuse arguments that its annotations exclude.

    Checked are arguments annotated with numbers (`int`, `float`, tuples of them), tensors and
    classes of this package, alone, beside each other or beside None; not those in `LEGAL`, which
    have texts of their own. NaN is no number, a fraction no integer. Ranges are left to the target.
    A wrong argument raises ValueError with its name, what fits and its value: before a function is
    called, and after the `__init__` of a class, whose own errors say more.

    Examples:
        >>> from dataclasses import dataclass
        >>> from polarlight.lookup import arguments_checked
        >>> @arguments_checked
        ... @dataclass(frozen=True)
        ... class Steps:
        ...     count: int = 5
        >>> Steps(2.5)
        Traceback (most recent call last):
        ValueError: count must be an integer, got 2.5
    """
    function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    arguments = _ArgumentCheck(function)

    def check(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        # A function: a compiler that traces `made` cannot build an object of its closure.
        arguments(args, kwargs)

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        check(args, kwargs)
        return function(*args, **kwargs)

    @wraps(function)
    def made(*args: Any, **kwargs: Any) -> None:
        if is_compiling():  # a slot that a step makes of a checked one
            function(*args, **kwargs)
            return
        try:
            function(*args, **kwargs)
        except (TypeError, AttributeError):  # of a comparison with the wrong argument, perhaps
            check(args, kwargs)
            raise
        check(args, kwargs)

    if not isinstance(target, type):
        return cast(F, called)
    target.__init__ = made  # type: ignore[misc]
    return target


class _ArgumentCheck:
    """The arguments of a function that `arguments_checked` checks, and how it does so."""

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = signature(function).parameters.values()
        named = (p for p in parameters if p.name not in LEGAL or _has_number(p.annotation))
        self.kinds = {p.name: p.annotation for p in named if _can_check(p.annotation)}
        by_place = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        self.positional = [p.name for p in parameters if p.kind in by_place]

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise ValueError if one of the arguments of a call does not fit its annotation."""
        for name, value in (*zip(self.positional, args, strict=False), *kwargs.items()):
            if name in self.kinds and not _fits(value, self.kinds[name]):
                kind = _kind_text(self.kinds[name])
                raise ValueError(f"{name} must be {kind}, got {described(value)}") from None


def _members(kind: Any) -> tuple[Any, ...]:
    """Return the alternatives of an annotation."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _has_number(kind: Any) -> bool:
    """Return whether int or float is one of an annotation's alternatives."""
    return not {int, float}.isdisjoint(_members(kind))


def _can_check(kind: Any) -> bool:
    """Return whether an annotation has but numbers, None, Tensor, their tuples and own classes."""
    if get_origin(kind) is tuple:
        return all(entry is ... or _can_check(entry) for entry in get_args(kind))
    if len(_members(kind)) > 1:
        return all(map(_can_check, _members(kind)))
    own = getattr(kind, "__module__", "").startswith("polarlight.")
    return kind in (int, float, NoneType, Tensor) or (own and isinstance(kind, type))


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of one of an annotation's alternatives; NaN is no number."""
    return any(_fits_one(value, k) for k in _members(kind))


def _fits_one(value: Any, kind: Any) -> bool:
    """Return whether a value is of a kind that `_can_check` accepts."""
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real)
        return number and not isinstance(value, bool) and value == value
    if get_origin(kind) is tuple:
        entries = get_args(kind)
        if not isinstance(value, tuple) or (entries[-1] is not ... and len(entries) != len(value)):
            return False
        kinds = entries if entries[-1] is not ... else entries[:1] * len(value)
        return all(map(_fits, value, kinds))
    if getattr(kind, "_is_protocol", False):  # anything that has its attributes
        methods = [n for n, v in vars(kind).items() if callable(v) or isinstance(v, property)]
        asked = [n for n in methods if n[0] != "_" or n == "__call__"]
        has_all = all(hasattr(value, n) for n in (*asked, *get_annotations(kind)))
        return has_all and not isinstance(value, type)
    return isinstance(value, kind)


_NUMBERS = {int: "integer", float: "number"}


def _kind_text(kind: Any) -> str:
    """Return an annotation in words, such as 'a number or None'."""
    words = []
    for k in _members(kind):
        if k in _NUMBERS:
            words.append(f"{'an' if k is int else 'a'} {_NUMBERS[k]}")
        elif get_origin(k) is tuple:
            inner = get_args(k)
            count = "" if inner[-1] is ... else f"{len(inner)} "
            words.append(f"a tuple of {count}{_plural(inner[0])}")
        else:
            article = "an" if k.__name__[0] in "AEIOU" else "a"
            words.append("None" if k is NoneType else f"{article} {k.__name__}")
    return " or ".join(words)


def _plural(kind: Any) -> str:
    """Return the entries of a tuple in words."""
    return f"{_NUMBERS[kind]}s" if kind in _NUMBERS else f"tuples of {_plural(get_args(kind)[0])}"


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
        check_number(f"{name}[{i}]", beta, " in [0, 1)")
        if not 0 <= beta < 1:
            raise ValueError(f"{name}[{i}] must lie in [0, 1), got {beta} of {value}")


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
