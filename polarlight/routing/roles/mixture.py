"""Mixtures of experts: routers, their scores, and parameters of experts."""

import inspect
from collections.abc import Iterator
from types import CodeType

from torch import nn

from polarlight.routing.roles.names import ROUTERS
from polarlight.routing.roles.site import ParamSite
from polarlight.routing.roles.vocabulary import Part, Role, RoleDecision

_SCORING = ("scoring_func", "score_func", "scoring_function", "router_score_function")
_SCORES = {"softmax": Part.SOFTMAX, "sigmoid": Part.SIGMOID}


def router_decision(site: ParamSite) -> Iterator[RoleDecision]:
    """Yield ROUTER with part SOFTMAX, SIGMOID or NONE for a matrix that scores experts."""
    where = _router_reason(site)
    if where is None or site.parameter.ndim != 2 or site.parameter.shape[0] < 2:
        return
    part, how = _scoring(site)
    yield RoleDecision(Role.ROUTER, f"router: {where}; {how}", part=part)


def in_experts(site: ParamSite) -> bool:
    """Return whether a parameter belongs to an expert or to a stack of experts."""
    if "experts" in site.path:
        return True
    names = (type(module).__name__ for module in site.modules[:2])
    return any("Experts" in name for name in names)


def _router_reason(site: ParamSite) -> str | None:
    """Return the reason why a matrix is a router; None if it is not."""
    for module in site.modules[:2]:
        if "Router" in type(module).__name__:
            return f"weight of {type(module).__name__}"
    words = (*site.block, site.module_name)
    for place, word in enumerate(words):
        if "router" in word:
            return f"inside {'.'.join(words[: place + 1])}"
        experts = 0 if word == "experts" else site.expert_count(place)
        if experts and word in ROUTERS:
            inner = ".".join(words[:place])
            return f"{word} beside experts in {inner if words[place + 1 :] else site.block_name}"
        if experts == site.parameter.shape[0] and place == len(words) - 1:
            return f"{word} beside {experts} experts, with a row for each"
    return None


def _scoring(site: ParamSite) -> tuple[Part, str]:
    """Return (SOFTMAX, SIGMOID or NONE, reason) for a router, from its config or its code."""
    declared = site.text(*_SCORING)
    if declared in _SCORES:
        return _SCORES[declared], f"{declared} scores, by the config"
    for module in site.modules[:3]:
        called = _SCORES.keys() & _names_in_methods(type(module))
        if len(called) == 1:
            word = called.pop()
            return _SCORES[word], f"{word} scores, by the code of {type(module).__name__}"
    return Part.NONE, "scores unknown"


def _names_in_methods(kind: type[nn.Module]) -> set[str]:
    """Return all attribute and global names used in a class's methods, without torch's bases."""
    own = [base for base in kind.__mro__[:-1] if not base.__module__.startswith("torch.")]
    methods = (inspect.unwrap(f) for base in own for f in vars(base).values() if callable(f))
    functions = (f for f in methods if inspect.isfunction(f))
    return {name for function in functions for name in _names_in_code(function.__code__)}


def _names_in_code(code: CodeType) -> Iterator[str]:
    """Yield the names in a code object and in those nested inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in_code(constant)
