"""Caching of what depends on shapes and settings, kept out of a compiler's way."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def lru_cache_eager(function: Callable[P, R]) -> Callable[P, R]:
    """`function` with a cache of 4096 results; arguments must be hashable.

    While torch compiles, the function itself is traced: once per graph, with a result that the
    graph contains. The compiler would do so with `lru_cache` too, but warn.
    """
    cached = lru_cache(maxsize=4096)(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        return cached(*args, **kwargs)  # type: ignore[arg-type]

    call.cache_clear = cached.cache_clear  # type: ignore[attr-defined]
    return call


def assume_constant(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, called while torch compiles instead of being traced; its result is a constant.

    What `torch.compiler.assume_constant_result` does, which imports the compiler to do it: seconds
    at the import of a package that may never compile.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def constant_size(n: int) -> int:
    """Return a size; while torch compiles, as a constant of the graph, with a guard on its value.

    Shapes are symbols under `dynamic=True`. What depends on a shape otherwise than by arithmetic,
    and functions that are assumed constant, need the number. `int` leaves it a symbol, a range does
    not.
    """
    return len(range(n))


def constant_fraction(x: float) -> float:
    """Return x in (0, 1); while torch compiles, as a constant of the graph, with a guard on it.

    Attributes are symbols under `dynamic=True`, and where an object with another value came before.
    A plan of many steps would be an expression that the compiler cannot finish. The 53 bits of x
    are the integer whose value is asked for.
    """
    if not torch.compiler.is_compiling():
        return x
    halvings = 0
    while x < 0.5:
        x, halvings = 2 * x, halvings + 1
    return constant_size(int(x * 2**53)) / 2.0 ** (53 + halvings)
