"""Which rule each parameter gets: a table from roles and names to routes, and its explanation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from polarlight.roles import Assignment, Role, infer_roles
from polarlight.rule import Rule, UpdateRule
from polarlight.view import MatrixView, Whole

ParamGroup = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What a group of parameters gets; None leaves the entry to the optimizer's default.

    Attributes:
        rule: The update rule.
        view: Which part of a parameter is a matrix; None keeps what the module says.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        momentum: Decay of the first moment.
    """

    rule: Rule | None = None
    view: MatrixView | None = None
    lr: float | Tensor | None = None
    weight_decay: float | None = None
    momentum: float | None = None


Table = Mapping[Role | str, Route]
"""Roles, or glob patterns on parameter names; the first entry that matches wins."""


def route(model: nn.Module | Iterable[tuple[str, Tensor]], table: Table) -> list[ParamGroup]:
    """Param groups in which every parameter of the model appears exactly once.

    Args:
        model: A module, or its named parameters (then names alone decide).
        table: Routes by role or by glob pattern (`"*.mlp.*"`), first match first.

    Returns:
        Groups for `SpectralOptimizer`, one per route, role and view, with names and reasons.

    Raises:
        ValueError: If a pattern matches no parameter, or a parameter matches no entry.
    """
    assignments = infer_roles(model)
    if not assignments:
        raise ValueError("the model has no parameters to route")
    matches = [_first_match(assignment, table) for assignment in assignments]
    _check_covered(assignments, matches)
    _check_used(assignments, table)
    groups: dict[Any, ParamGroup] = {}
    for assignment, key in zip(assignments, matches, strict=True):
        assert key is not None
        entry = table[key]
        view = entry.view or assignment.view
        group = groups.setdefault((key, assignment.role, view), _new_group(entry, assignment, view))
        group["params"].append(assignment.parameter)
        group["param_names"].append(assignment.name)
        group["reasons"][assignment.name] = _reason(assignment, key)
    return list(groups.values())


def explain(source: Optimizer | Sequence[ParamGroup]) -> str:
    """A table of every parameter: shape, role, rule, view, engine, learning rates, and the reason.

    `lr` is the group's; `lr x scale` includes the rule's factor for the matrix shape and is what a
    polar factor is multiplied by. Totals per role follow.
    """
    if isinstance(source, Optimizer):
        groups, defaults = source.param_groups, source.defaults
        reasons = dict(getattr(source, "reasons", {}))
    else:
        groups, defaults = list(source), {}
        reasons = {k: v for g in groups for k, v in g.get("reasons", {}).items()}
    header = ["parameter", "shape", "role", "rule", "view", "engine", "lr", "lr x scale", "reason"]
    rows = [row for g in groups for row in _rows(defaults | g, reasons)]
    return f"{_aligned([header, *rows])}\n\n{_totals(groups)}"


def _first_match(assignment: Assignment, table: Table) -> Role | str | None:
    return next((key for key in table if _matches(assignment, key)), None)


def _matches(assignment: Assignment, key: Role | str) -> bool:
    if isinstance(key, Role):
        return assignment.role is key
    return fnmatchcase(assignment.name, key)


def _check_covered(assignments: list[Assignment], matches: list[Role | str | None]) -> None:
    uncovered = [
        f"{a.name} {tuple(a.parameter.shape)} ({a.role})"
        for a, key in zip(assignments, matches, strict=True)
        if key is None
    ]
    if uncovered:
        raise ValueError(
            "no entry of the table covers these parameters; add their role or a pattern:\n  "
            + "\n  ".join(uncovered)
        )


def _check_used(assignments: list[Assignment], table: Table) -> None:
    for key in table:
        if not isinstance(key, Role) and not any(_matches(a, key) for a in assignments):
            names = ", ".join(a.name for a in assignments[:5])
            raise ValueError(f"pattern {key!r} matches no parameter; the names are: {names}, ...")


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


def _reason(assignment: Assignment, key: Role | str) -> str:
    return assignment.reason if isinstance(key, Role) else f"matches {key!r}; {assignment.reason}"


def _rows(group: ParamGroup, reasons: Mapping[str, str]) -> list[list[str]]:
    """One row per parameter of the group."""
    names = group.get("param_names") or ["-"] * len(group["params"])
    lr = group.get("lr")
    rows = []
    for name, p in zip(names, group["params"], strict=True):
        view, engine, factors = _treatment(group, p)
        rows.append(
            [
                name,
                " x ".join(str(size) for size in p.shape) or "scalar",
                group.get("role") or "-",
                group["rule"].name if "rule" in group else "default",
                view,
                engine,
                "default" if lr is None else f"{float(lr):g}",
                "-" if lr is None else ", ".join(f"{float(lr) * f:.4g}" for f in factors),
                reasons.get(name, "given by the caller"),
            ]
        )
    return rows


def _treatment(group: ParamGroup, p: Tensor) -> tuple[str, str, list[float]]:
    """View and engine in words, and the scale factors that occur among the parts."""
    rule, view = group.get("rule"), group.get("view") or Whole()
    if not isinstance(rule, UpdateRule):
        return "-", "-" if rule is None else "elementwise", [1.0]
    shapes = view.shapes(p.shape)
    engines = dict.fromkeys(rule.engine(*shape[-2:]) for shape in shapes)
    return repr(view), ", ".join(engines), sorted({rule.scale(*shape[-2:]) for shape in shapes})


def _totals(groups: Sequence[ParamGroup]) -> str:
    totals: dict[str, list[int]] = {}
    for group in groups:
        entry = totals.setdefault(group.get("role") or "no role", [0, 0])
        entry[0] += len(group["params"])
        entry[1] += sum(p.numel() for p in group["params"])
    rows = [[role, f"{count}", f"{size:,}"] for role, (count, size) in totals.items()]
    return _aligned([["role", "tensors", "parameters"], *rows])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
