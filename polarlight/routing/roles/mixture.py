"""Mixtures of experts: which matrix is the router, how it scores, and what belongs to experts."""

import inspect
from collections.abc import Iterator
from types import CodeType

from torch import nn

from polarlight.routing.roles.names import ROUTERS
from polarlight.routing.roles.site import Site
from polarlight.routing.roles.vocabulary import Part, Role, Verdict

_SCORING = ("scoring_func", "score_func", "scoring_function", "router_score_function")
_SCORES = {"softmax": Part.SOFTMAX, "sigmoid": Part.SIGMOID}


def router(site: Site) -> Iterator[Verdict]:
    """Verdicts on matrices that score experts."""
    where = _router_home(site)
    if where is None or site.parameter.ndim != 2 or site.parameter.shape[0] < 2:
        return
    part, how = _scoring(site)
    yield Verdict(Role.ROUTER, f"router: {where}; {how}", part=part)


def in_experts(site: Site) -> bool:
    """Whether the parameter is an expert's or a stack of experts'."""
    if "experts" in site.path:
        return True
    names = (type(module).__name__ for module in site.modules[:2])
    return any("Experts" in name for name in names)


def _router_home(site: Site) -> str | None:
    for module in site.modules[:2]:
        if "Router" in type(module).__name__:
            return f"weight of {type(module).__name__}"
    path = site.path
    if "router" in path:
        return f"inside {'.'.join(path[: path.index('router') + 1])}"
    if site.word in ROUTERS and site.beside("experts"):
        return f"{site.word} beside experts in {site.home}"
    return None


def _scoring(site: Site) -> tuple[Part, str]:
    """How the scores are made: by the config's word, or by what the forward pass calls."""
    told = site.text(*_SCORING)
    if told in _SCORES:
        return _SCORES[told], f"{told} scores, by the config"
    for module in site.modules[:3]:
        called = _SCORES.keys() & _names_in(type(module))
        if len(called) == 1:
            word = called.pop()
            return _SCORES[word], f"{word} scores, by the code of {type(module).__name__}"
    return Part.NONE, "scores unknown"


def _names_in(kind: type[nn.Module]) -> set[str]:
    """Every attribute and global that the class's methods mention, torch's own left out."""
    own = [base for base in kind.__mro__[:-1] if not base.__module__.startswith("torch.")]
    methods = (inspect.unwrap(f) for base in own for f in vars(base).values() if callable(f))
    functions = (f for f in methods if inspect.isfunction(f))
    return {name for function in functions for name in _mentioned(function.__code__)}


def _mentioned(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _mentioned(constant)
