"""`route`: param groups from a table of roles or name patterns and their routes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from torch import Tensor, nn

from polarlight.lookup import check_fraction, check_overrides, check_rate, nearest
from polarlight.routing.explain import explain
from polarlight.routing.explain.folding import fold
from polarlight.routing.keys import (
    Key,
    first_match,
    format_key,
    format_keys,
    has_pattern,
    matches_key,
    parse_key,
)
from polarlight.routing.roles import MATRIX_ROLES, Assignment, Role, infer_roles
from polarlight.rule import ElementwiseRule, Rule, UpdateRule
from polarlight.view import MatrixView, Whole

__all__ = ["Overrides", "ParamGroup", "Route", "Table", "explain", "per_head", "route"]

ParamGroup = dict[str, Any]


_NUMBERS = {"lr": check_rate, "weight_decay": check_rate, "momentum": check_fraction}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Settings of a group of parameters; None leaves an entry to the optimizer's default.

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

    def __post_init__(self) -> None:
        """Raise TypeError if `rule` is given and is no rule, ValueError for a wrong number."""
        if self.rule is not None and not _is_rule(self.rule):
            raise TypeError(
                f"rule must be a rule, as `polarlight.rules.muon()` makes one, got {self.rule!r}"
            )
        for name, check in _NUMBERS.items():
            if (value := getattr(self, name)) is not None:
                check(name, value)


Table = Mapping[Role | str, Route | Rule] | Mapping[Key, Route | Rule]
"""Routes by what parameters match, in order; the first entry that matches wins. A rule stands for a
`Route` of this rule and nothing else.

A `Role`, or a string equal to one; a pair, `(Role.EXPERT, Part.DOWN)` or
`(Role.DOWN, "layers.3.*")`; any other string is a glob pattern on names, in which `*` also matches
dots. A name that happens to equal a role's value is matched by a pattern such as `"[h]ead"`.
"""

Overrides = Mapping[Role | str, Route | Rule | Role] | Mapping[Key, Route | Rule | Role]
"""Exceptions from a table, with its keys. A pattern without a match is an error. A role, or a pair
of role and part, is a default, which a model without that role leaves unused. A value may be

a `Role`: the parameter is treated as one of that role (`Role.HIDDEN`: it gets the matrices' rule);
    one of a single dimension never as a matrix, and a pattern that matches only such is an error;
a rule: it gets this rule; numbers are those of other parameters with a rule of its kind;
a `Route`: the entries that it has replace the parameter's own.
"""


@dataclass(frozen=True, slots=True)
class RoutedParam:
    """Parameter with its route.

    Attributes:
        assignment: The parameter with its role.
        entry: The route, with the changes of an override.
        view: The view that splits the parameter into matrices.
        keys: Key of the override, if any, and key of the table's entry.
    """

    assignment: Assignment
    entry: Route
    view: MatrixView
    keys: tuple[Key | None, Key]


def per_head(assignment: Assignment) -> MatrixView:
    """Return the view with a matrix per attention head, for `Route(view=per_head)`; else raise.

    Raises:
        ValueError: If the number of heads is unknown.
    """
    if assignment.heads is None:
        raise ValueError("its heads are unknown")
    return assignment.heads


def route(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    table: Table,
    *,
    overrides: Overrides | None = None,
) -> list[ParamGroup]:
    """Return param groups in which every parameter of the model appears exactly once.

    Args:
        model: A module, or its named parameters (then names and shapes decide).
        table: Routes by role, by role and part, or by glob pattern on names; see `Table`.
        overrides: Exceptions from the table; see `Overrides`.

    Returns:
        Groups for `SpectralOptimizer`, one per entry, role and view, with names and reasons.

    Raises:
        ValueError: If a parameter matches no entry, a pattern matches no parameter or only such as
            earlier entries take, or a parameter does not fit its view. All of them are listed.
        TypeError: If an entry is no route or rule, an override no route, rule or role, or a key no
            role, pair or pattern.
    """
    return groups_of(resolve(model, table, overrides))


def resolve(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    table: Table,
    overrides: Overrides | None = None,
) -> list[RoutedParam]:
    """Return every parameter with its role, route and view; arguments and errors as for `route`."""
    assignments = infer_roles(model)
    if not assignments:
        raise ValueError("the model has no parameters to route")
    if not isinstance(table, Mapping):
        raise TypeError(f"table must map roles or name patterns to Routes, got {table!r}")
    entries = {parse_key(key): _parse_entry(key, entry) for key, entry in table.items()}
    check_overrides(overrides)
    exceptions = {
        parse_key(key): _parse_override(key, value) for key, value in (overrides or {}).items()
    }
    asked = [first_match(assignment, exceptions) for assignment in assignments]
    _check_used(assignments, exceptions, asked)
    _check_matrix_overrides(assignments, exceptions, asked)
    _check_used(assignments, entries, [first_match(a, entries) for a in assignments])
    assignments = [
        assignment if key is None else _with_override(assignment, key, exceptions[key])
        for assignment, key in zip(assignments, asked, strict=True)
    ]
    matches = [first_match(assignment, entries) for assignment in assignments]
    _check_covered(assignments, matches)
    keys = [(key, match) for key, match in zip(asked, matches, strict=True) if match is not None]
    routes = [
        entries[match] if key is None else _merged_route(entries[match], exceptions[key], entries)
        for key, match in keys
    ]
    views = _views_of(assignments, routes)
    return list(map(RoutedParam, assignments, routes, views, keys))


def groups_of(routed: Iterable[RoutedParam]) -> list[ParamGroup]:
    """Return param groups, one per table entry, override, role and view, with names and reasons."""
    groups: dict[Any, ParamGroup] = {}
    for found in routed:
        assignment, entry, table_key = found.assignment, found.entry, found.keys[1]
        numbers = {name: getattr(entry, name) for name in _NUMBERS}
        given = {"rule": entry.rule} | numbers
        new: ParamGroup = {
            "params": [],
            "param_names": [],
            "reasons": {},
            "role": str(assignment.role),
            "view": found.view,
            **{name: value for name, value in given.items() if value is not None},
        }
        group = groups.setdefault((found.keys, assignment.role, found.view), new)
        group["params"].append(assignment.parameter)
        group["param_names"].append(assignment.name)
        matched = f"matches {format_key(table_key)}; " if has_pattern(table_key) else ""
        group["reasons"][assignment.name] = matched + assignment.reason
    return list(groups.values())


def _is_rule(value: object) -> bool:
    """Return whether a value is an `UpdateRule` or `ElementwiseRule` object (no class of these)."""
    return isinstance(value, UpdateRule | ElementwiseRule) and not isinstance(value, type)


def _parse_entry(key: Key, value: object) -> Route:
    """Return a table's value, a rule or route, as a `Route`; raise TypeError for anything else."""
    if _is_rule(value):
        return Route(rule=cast(Rule, value))
    if not isinstance(value, Route):
        raise TypeError(f"the entry for {format_key(key)} must be a Route or a rule, got {value!r}")
    return value


def _parse_override(key: Key, value: object) -> Route | Role:
    """Return an override, a route, rule, role or its name, as `Route` or `Role`; else raise.

    Raises:
        ValueError: If it changes nothing.
        TypeError: If it is none of these.
    """
    if isinstance(value, str) and value in set(Role):
        return Role(value)
    if _is_rule(value):
        return Route(rule=cast(Rule, value))
    if not isinstance(value, Route):
        raise TypeError(
            f"the override for {format_key(key)} must be a Route, a rule or a Role, got {value!r}"
        )
    if value == Route():
        raise ValueError(
            f"the override for {format_key(key)} is an empty Route, which changes nothing; "
            "Role.HIDDEN gives a parameter the rule of the matrices"
        )
    return value


def _with_override(assignment: Assignment, key: Key, override: Route | Role) -> Assignment:
    """Return a copy with the override in the reason; a `Role` replaces the role, if it fits."""
    reason = f"override for {format_key(key)}; {assignment.reason}"
    role = override if isinstance(override, Role) else assignment.role
    if role in MATRIX_ROLES and assignment.parameter.ndim < 2:
        role = assignment.role
    return replace(assignment, role=role, reason=reason)


def _merged_route(entry: Route, override: Route | Role, table: Mapping[Key, Route]) -> Route:
    """Return `entry` (or another of `table`, of the override's kind) with the override's settings.

    If one has an elementwise rule and the other has not, the settings are put on the first entry of
    the table that agrees with the override in this.
    """
    if isinstance(override, Role):
        return entry
    if override.rule is not None and is_elementwise(override) != is_elementwise(entry):
        kind = is_elementwise(override)
        entry = next((other for other in table.values() if is_elementwise(other) == kind), Route())
    given = {field.name: getattr(override, field.name) for field in fields(override)}
    return replace(entry, **{name: x for name, x in given.items() if x is not None})


def is_elementwise(entry: Route) -> bool:
    """Return whether a route has an elementwise rule."""
    return entry.rule is not None and not isinstance(entry.rule, UpdateRule)


def _check_covered(assignments: Sequence[Assignment], matches: Sequence[Key | None]) -> None:
    """Raise ValueError if a parameter matches no entry of the table."""
    uncovered: dict[str, list[str]] = {}
    for a, key in zip(assignments, matches, strict=True):
        if key is None:
            uncovered.setdefault(f" {tuple(a.parameter.shape)} ({a.role})", []).append(a.name)
    if uncovered:
        raise ValueError(
            "no entry of the table covers these parameters; add their role or a pattern:"
            + _format_problems(uncovered)
        )


def _check_used(
    assignments: Sequence[Assignment], keys: Iterable[Key], matches: Sequence[Key | None]
) -> None:
    """Raise ValueError if a pattern of `keys` matches nothing, or only what earlier keys take."""
    patterns = [key for key in keys if has_pattern(key)]
    idle = [key for key in patterns if key not in matches]
    missing = [key for key in idle if not any(matches_key(a, key) for a in assignments)]
    if missing:
        names = [pattern for pattern, _ in fold(a.name for a in assignments)]
        texts = [key for key in missing if isinstance(key, str)]
        found = [(key, nearest(key, [*map(str, Role), *names])) for key in texts]
        hints = "".join(f" Did you mean {near} by {key!r}?" for key, near in found if near)
        more = ", ..." if len(names) > 5 else ""
        raise ValueError(
            f"no parameter matches {format_keys(missing)}.{hints} "
            f"The names are: {', '.join(names[:5])}{more}"
        )
    if idle:
        raise ValueError(
            f"earlier entries take every parameter that matches {format_keys(idle)}; the first "
            "match wins: move these patterns up or remove them"
        )


def _check_matrix_overrides(
    assignments: Sequence[Assignment],
    overrides: Mapping[Key, Route | Role],
    asked: Sequence[Key | None],
) -> None:
    """Raise ValueError if an override's pattern gives a matrix role to vectors alone.

    `asked` holds the override's key of each parameter, None without one.
    """
    for key, role in overrides.items():
        if role not in MATRIX_ROLES or not has_pattern(key):
            continue
        found = [a for a, own in zip(assignments, asked, strict=True) if own == key]
        if all(a.parameter.ndim < 2 for a in found):
            names = ", ".join(f"{a.name} {tuple(a.parameter.shape)}" for a in found[:3])
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise ValueError(
                f"the override for {format_key(key)} makes matrices of {names}{more}, which need "
                "two dimensions; give them a Route(lr=...), an AdamWRule() or Role.VECTOR"
            )


def _views_of(assignments: Sequence[Assignment], routes: Sequence[Route]) -> list[MatrixView]:
    """Return each parameter's view: its route's, or else the inferred one; raise for misfits.

    Raises:
        ValueError: If some do not fit their parameters; all of these are listed.
    """
    views: list[MatrixView] = []
    problems: dict[str, list[str]] = {}
    for assignment, route in zip(assignments, routes, strict=True):
        try:
            views.append(_view_of(assignment, route))
        except ValueError as error:
            problems.setdefault(f": {error}", []).append(assignment.name)
    if problems:
        raise ValueError(
            "these parameters do not fit their view; give them another route by an earlier pattern:"
            + _format_problems(problems)
        )
    return views


def _view_of(assignment: Assignment, entry: Route) -> MatrixView:
    """Return the route's or inferred view, or Whole; raise if unfit for a rule for matrices."""
    elementwise = is_elementwise(entry)
    if entry.view is None:
        view = assignment.view
        if elementwise and assignment.role not in MATRIX_ROLES:
            return Whole()
    else:
        view = entry.view if isinstance(entry.view, MatrixView) else entry.view(assignment)
    if not elementwise and (entry.rule is not None or entry.view is not None):
        view.shapes(assignment.parameter.shape)
    return view


def _format_problems(problems: Mapping[str, Sequence[str]]) -> str:
    """Format {problem: parameter names} as indented lines, one per folded name pattern."""
    lines = [f"{pattern}{what}" for what, names in problems.items() for pattern, _ in fold(names)]
    return "\n  " + "\n  ".join(lines)
