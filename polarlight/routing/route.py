"""Which rule each parameter gets: a table from roles and names to routes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from polarlight.routing.explain import explain
from polarlight.routing.explain.folding import fold
from polarlight.routing.roles import MATRIX_ROLES, Assignment, Part, Role, infer_roles
from polarlight.rule import Rule, UpdateRule
from polarlight.view import MatrixView, Whole

__all__ = ["ParamGroup", "Route", "Table", "explain", "per_head", "route"]

ParamGroup = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What a group of parameters gets; None leaves the entry to the optimizer's default.

    Attributes:
        rule: The update rule.
        view: Which part of a parameter is a matrix, or a function that picks it (`per_head`);
            None keeps what was inferred.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        momentum: Decay of the first moment.
    """

    rule: Rule | None = None
    view: MatrixView | Callable[[Assignment], MatrixView] | None = None
    lr: float | Tensor | None = None
    weight_decay: float | None = None
    momentum: float | None = None


Key = Role | tuple[Role, Part] | str
Table = Mapping[Role | str, Route] | Mapping[Key, Route]
"""What is matched against each parameter, in order; the first entry that matches wins.

A `Role`, or a string equal to one; a pair `(Role.EXPERT, Part.DOWN)`; any other string is a glob
pattern on names, in which `*` also matches dots. A name that happens to equal a role's value is
matched by a pattern such as `"[h]ead"`.
"""


def per_head(assignment: Assignment) -> MatrixView:
    """For `Route(view=per_head)`: one matrix per attention head.

    Raises:
        ValueError: If the number of heads is unknown.
    """
    if assignment.heads is None:
        raise ValueError("its heads are unknown")
    return assignment.heads


def route(model: nn.Module | Iterable[tuple[str, Tensor]], table: Table) -> list[ParamGroup]:
    """Param groups in which every parameter of the model appears exactly once.

    Args:
        model: A module, or its named parameters (then names and shapes decide).
        table: Routes by role, by role and part, or by glob pattern on names; see `Table`.

    Returns:
        Groups for `SpectralOptimizer`, one per entry, role and view, with names and reasons.

    Raises:
        ValueError: If a parameter matches no entry, a pattern matches no parameter or only such as
            earlier entries take, or a parameter does not fit its view. All of them are listed.
    """
    assignments = infer_roles(model)
    if not assignments:
        raise ValueError("the model has no parameters to route")
    entries = {_key(key): entry for key, entry in table.items()}
    matches = [_first_match(assignment, entries) for assignment in assignments]
    _check_covered(assignments, matches)
    _check_used(assignments, entries, matches)
    views = _views(assignments, [entries[key] for key in matches if key is not None])
    groups: dict[Any, ParamGroup] = {}
    for assignment, key, view in zip(assignments, matches, views, strict=True):
        assert key is not None
        new = _new_group(entries[key], assignment, view)
        group = groups.setdefault((key, assignment.role, view), new)
        group["params"].append(assignment.parameter)
        group["param_names"].append(assignment.name)
        group["reasons"][assignment.name] = _reason(assignment, key)
    return list(groups.values())


def _key(key: Key) -> Key:
    """The key with strings that mean a role or a part as such."""
    if isinstance(key, tuple):
        role, part = key
        return Role(role), Part(part)
    return Role(key) if key in set(Role) else key


def _first_match(assignment: Assignment, keys: Iterable[Key]) -> Key | None:
    return next((key for key in keys if _matches(assignment, key)), None)


def _matches(assignment: Assignment, key: Key) -> bool:
    if isinstance(key, Role):
        return assignment.role is key
    if isinstance(key, tuple):
        return (assignment.role, assignment.part) == key
    return fnmatchcase(assignment.name, key)


def _check_covered(assignments: Sequence[Assignment], matches: Sequence[Key | None]) -> None:
    uncovered: dict[str, list[str]] = {}
    for a, key in zip(assignments, matches, strict=True):
        if key is None:
            uncovered.setdefault(f" {tuple(a.parameter.shape)} ({a.role})", []).append(a.name)
    if uncovered:
        raise ValueError(
            "no entry of the table covers these parameters; add their role or a pattern:"
            + _listed(uncovered)
        )


def _check_used(
    assignments: Sequence[Assignment], keys: Iterable[Key], matches: Sequence[Key | None]
) -> None:
    """Patterns must take something; roles need not occur."""
    patterns = [key for key in keys if not isinstance(key, Role | tuple)]
    idle = [key for key in patterns if key not in matches]
    missing = [key for key in idle if not any(_matches(a, key) for a in assignments)]
    if missing:
        names = [pattern for pattern, _ in fold(a.name for a in assignments)]
        hints = "".join(_hint(key, names) for key in missing)
        more = ", ..." if len(names) > 5 else ""
        raise ValueError(
            f"no parameter matches {_quoted(missing)}.{hints} "
            f"The names are: {', '.join(names[:5])}{more}"
        )
    if idle:
        raise ValueError(
            f"earlier entries take every parameter that matches {_quoted(idle)}; the first match "
            "wins: move these patterns up or remove them"
        )


def _hint(pattern: str, names: Sequence[str]) -> str:
    """What a pattern that matches nothing may have meant."""
    near = get_close_matches(pattern, [*Role, *names], n=1)
    return f" Did you mean {near[0]!s} by {pattern!r}?" if near else ""


def _views(assignments: Sequence[Assignment], entries: Sequence[Route]) -> list[MatrixView]:
    """The view of every parameter.

    Raises:
        ValueError: If some do not fit; they are listed.
    """
    views: list[MatrixView] = []
    problems: dict[str, list[str]] = {}
    for assignment, entry in zip(assignments, entries, strict=True):
        try:
            views.append(_view(assignment, entry))
        except ValueError as error:
            problems.setdefault(f": {error}", []).append(assignment.name)
    if problems:
        raise ValueError(
            "these parameters do not fit their view; give them another route by an earlier pattern:"
            + _listed(problems)
        )
    return views


def _view(assignment: Assignment, entry: Route) -> MatrixView:
    elementwise = entry.rule is not None and not isinstance(entry.rule, UpdateRule)
    if entry.view is None:
        view = assignment.view
        if elementwise and assignment.role not in MATRIX_ROLES:
            return Whole()
    else:
        view = entry.view if isinstance(entry.view, MatrixView) else entry.view(assignment)
    if not elementwise and (entry.rule is not None or entry.view is not None):
        view.shapes(assignment.parameter.shape)
    return view


def _new_group(entry: Route, assignment: Assignment, view: MatrixView) -> ParamGroup:
    numbers = {"lr": entry.lr, "weight_decay": entry.weight_decay, "momentum": entry.momentum}
    given = {"rule": entry.rule} | numbers
    return {
        "params": [],
        "param_names": [],
        "reasons": {},
        "role": str(assignment.role),
        "view": view,
        **{key: value for key, value in given.items() if value is not None},
    }


def _reason(assignment: Assignment, key: Key) -> str:
    if isinstance(key, Role | tuple):
        return assignment.reason
    return f"matches {key!r}; {assignment.reason}"


def _listed(problems: Mapping[str, Sequence[str]]) -> str:
    """A line per problem and pattern of names."""
    lines = [f"{pattern}{what}" for what, names in problems.items() for pattern, _ in fold(names)]
    return "\n  " + "\n  ".join(lines)


def _quoted(patterns: Iterable[str]) -> str:
    return ", ".join(repr(str(pattern)) for pattern in patterns)
