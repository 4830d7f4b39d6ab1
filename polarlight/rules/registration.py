"""Registration of rules: a rule is declared once, beside its function.

    @registered_rule(lr=0.02, about="polar factor of the momentum")
    def muon(...) -> UpdateRule: ...

The contract suite, the tests of symmetries and invariants, the trainer's recipes and the reference
page go by `REGISTERED`. A file outside the package registers its rule in the same way, on import.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from polarlight.rule import UpdateRule

F = TypeVar("F", bound=Callable[..., UpdateRule])


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleEntry:
    """A registered rule.

    Attributes:
        make: Returns the rule; every argument has a default. Its name is the rule's: in checkpoints
            (as `method`), tables and on the command line.
        lr: Learning rate of hidden matrices to start from, in the trainer.
        about: One line for `polarlight compare --help`.
        momentum: Decay of the first moment, in the trainer.
    """

    make: Callable[..., UpdateRule]
    lr: float
    about: str
    momentum: float = 0.95


REGISTERED: dict[str, RuleEntry] = {}
"""Name -> entry, in the order of registration."""


def registered_rule(*, lr: float, about: str, momentum: float = 0.95) -> Callable[[F], F]:
    """Register the decorated function as a rule; arguments as in `RuleEntry`.

    Raises:
        TypeError: If the function needs arguments or returns no `UpdateRule`.
        ValueError: If the rule has another name than the function, another function has the name,
            `lr` is not positive, or a text is missing.

    Examples:
        >>> from polarlight.linalg import AutoPolar
        >>> from polarlight.rule import UpdateRule
        >>> from polarlight.rules import registered_rule
        >>> from polarlight.stages import HeavyBall, RmsToRms
        >>> @registered_rule(lr=0.02, about="polar factor of a heavy ball")
        ... def heavy_muon() -> UpdateRule:
        ...     "Muon with a heavy ball."
        ...     name, momentum = "heavy_muon", HeavyBall(nesterov=True)
        ...     return UpdateRule(name=name, momentum=momentum, map=AutoPolar(), scale=RmsToRms())
    """

    def register(make: F) -> F:
        name = make.__name__
        if needed := _required(make):
            raise TypeError(f"rule {name} needs {needed}; give every argument a default")
        rule = make()
        if not isinstance(rule, UpdateRule):
            raise TypeError(f"rule {name} returned {rule!r}; return an UpdateRule")
        if rule.name != name:
            raise ValueError(f"rule {name} is called {rule.name!r}: set UpdateRule(name={name!r})")
        if not lr > 0 or not about or not make.__doc__:
            raise ValueError(f"rule {name} needs lr > 0, got {lr}, a line about it, a docstring")
        known = REGISTERED.get(name)
        if known and known.make.__module__ != make.__module__:  # else reloaded
            raise ValueError(
                f"rule {name!r} is registered by {known.make.__module__}; choose another name"
            )
        REGISTERED[name] = RuleEntry(make=make, lr=lr, about=about, momentum=momentum)
        return make

    return register


def _required(make: Callable[..., UpdateRule]) -> list[str]:
    """Return the names of arguments without a default."""
    return [
        p.name
        for p in inspect.signature(make).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
