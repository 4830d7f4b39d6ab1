"""Keeping a probe out of what `torch.compile` makes of a step."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from torch._compile import _disable_dynamo

P = ParamSpec("P")
R = TypeVar("R")


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """The function, called as it is where a compiled step comes to it: the graph breaks there.

    As `torch.compiler.disable`, which however loads the whole compiler when it decorates; this is
    what torch's own optimizers use.
    """
    return cast(Callable[P, R], _disable_dynamo(function))
