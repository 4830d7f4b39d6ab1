"""What a param group must satisfy, which of its parameters take part in a step, and together."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from polarlight.execution.batched import parts_of_a_step
from polarlight.lookup import check_object
from polarlight.rule import ElementwiseRule, UpdateRule
from polarlight.view import MatrixView, Whole

Group = dict[str, Any]
StateDict = dict[str, Any]

Members = Mapping[int, list[int]]
"""Of groups: the places of the parameters that take part."""

STRUCTURE = ("rule", "view")
"""Entries that are objects: a checkpoint holds their fingerprints and never replaces them."""


def name_of(group: Mapping[str, Any], index: int, place: int) -> str:
    """The name of a parameter, or where it stands."""
    names = group.get("param_names")
    if names and len(names) == len(group["params"]):  # else they were replaced, as by a flat one
        return str(names[place])
    return f"param_groups[{index}]['params'][{place}]"


def check_numbers(group: Group) -> None:
    """Raises ValueError unless the group's scheduled numbers are in their ranges."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"a tensor lr must have 1 element, got shape {tuple(lr.shape)}")
    for key in ("lr", "weight_decay", "momentum"):
        if isinstance(group[key], str):
            raise ValueError(f"{key} must be a number, got the text {group[key]!r}")
    for key in ("lr", "weight_decay"):
        if not group[key] >= 0:
            raise ValueError(f"{key} must be >= 0, got {group[key]}")
        if group[key] == inf:
            raise ValueError(f"{key} must be finite, got {group[key]}")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']}")


def check_group(group: Group, index: int) -> None:
    """Raises ValueError, naming what is wrong, unless the group can be stepped."""
    check_numbers(group)
    _refuse_foreign_keys(group, index)
    check_object("view", group["view"])
    if group["rule"] is None:
        names = ", ".join(name_of(group, index, i) for i in range(min(3, len(group["params"]))))
        raise ValueError(
            f"param group {index} ({names}, ...) has no rule: give the optimizer one, for example "
            "rule=polarlight.rules.muon(), or every group its own, as polarlight.recipes does"
        )
    if not isinstance(group["rule"], UpdateRule | ElementwiseRule):
        raise ValueError(f"rule must be an UpdateRule or an ElementwiseRule, got {group['rule']!r}")
    _check_parameters(group, index)


def without_frozen_integers(group: Mapping[str, Any]) -> Group:
    """Return the group's `params`, and `param_names` if any, without integer `nn.Parameter`s.

    These hold quantized weights and never have a gradient. Any other tensor of integers is kept,
    for `check_group` to refuse.
    """
    params = list(group["params"])
    kept = [
        i
        for i, entry in enumerate(params)
        if not _is_frozen_integer(entry[1] if isinstance(entry, tuple) else entry)
    ]
    changed = {"params": [params[i] for i in kept]}
    if names := group.get("param_names"):
        changed["param_names"] = [names[i] for i in kept]
    elif not kept and any(isinstance(entry, tuple) for entry in params):
        changed["param_names"] = []  # torch wants names in all groups or in none
    return changed


def _is_frozen_integer(p: object) -> bool:
    if not isinstance(p, nn.Parameter):
        return False
    return not (p.is_floating_point() or p.is_complex() or p.requires_grad)


_FOREIGN = ("use_muon", "algorithm", "use_fallback", "betas", "eps", "adamw_betas", "adamw_eps")
"""Keys by which other libraries choose a group's method, and AdamW's, which belong to a rule."""


def _refuse_foreign_keys(group: Group, index: int) -> None:
    """Raises ValueError if a group has keys that would change the step elsewhere and not here."""
    found = [f"{key!r}: {group[key]!r}" for key in _FOREIGN if key in group]
    if found:
        raise ValueError(
            f"param group {index} has {', '.join(found)}, which polarlight does not read. Say "
            "which rule it gets: 'rule': polarlight.rules.muon(), or 'rule': "
            "polarlight.rules.AdamWRule(beta2, eps) with 'momentum': beta1. Or pass the model or "
            "model.named_parameters() to have matrices and the rest routed"
        )


def check_disjoint(groups: Sequence[Group], params: Sequence[Any]) -> None:
    """Raises ValueError, naming them, if some of `params` occur twice or in one of the groups.

    Args:
        groups: Groups that are there already.
        params: Tensors or `(name, tensor)` pairs of a group to be added.
    """
    places = {
        id(p): name_of(group, index, place)
        for index, group in enumerate(groups)
        for place, p in enumerate(group["params"])
    }
    twice = []
    for place, entry in enumerate(params):
        name, p = entry if isinstance(entry, tuple) else (f"params[{place}]", entry)
        if id(p) in places:
            twice.append(f"{name} (it is {places[id(p)]})")
        places.setdefault(id(p), name)
    if twice:
        raise ValueError(
            "a parameter can be in one place of one group only; "
            f"remove the second mention of: {', '.join(twice)}"
        )


def _check_parameters(group: Group, index: int) -> None:
    rule, view = group["rule"], group["view"]
    named = [(name_of(group, index, i), p) for i, p in enumerate(group["params"])]
    others = [f"{name} is {p.dtype}" for name, p in named if not p.is_floating_point()]
    if others:
        raise ValueError(f"{', '.join(others)}; only real floating-point parameters are supported")
    if not isinstance(rule, UpdateRule):
        return
    if named and all(p.ndim < 2 for _, p in named):
        check_is_matrix(group, index, 0)
    odd = [f"{name} has shape {tuple(p.shape)}" for name, p in named if p.ndim != 2]
    if view is None and odd:
        raise ValueError(
            f"{', '.join(odd)}; {rule.name} is for matrices. Pass the model or "
            "model.named_parameters() to have everything else routed to AdamW, give it to another "
            "optimizer, or say which part of it is a matrix: "
            "{'params': [...], 'view': polarlight.view.Whole()} takes leading dimensions as batch."
        )
    misfits = [f"{n}: {said}" for n, p in named if (said := _misfit(view or Whole(), p.shape))]
    if misfits:
        raise ValueError("\n".join(misfits))


def check_is_matrix(group: Group, index: int, place: int) -> None:
    """Raises ValueError if a rule for matrices has a parameter with fewer than two dimensions."""
    rule, p = group["rule"], group["params"][place]
    if not isinstance(rule, UpdateRule) or p.ndim >= 2:
        return
    names = [str(name) for name in group.get("param_names") or ()]
    once = f", once {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""
    raise ValueError(
        f"param group {index}{once}: {name_of(group, index, place)} has shape {tuple(p.shape)}, "
        f"and {rule.name} is for matrices. Either it is a vector: pass the model or "
        "model.named_parameters() to have vectors routed to AdamW. Or a wrapper flattened the "
        "group into one tensor, in which no matrix can be found again: DeepSpeed does so under "
        "ZeRO 1 to 3, FSDP1 with use_orig_params=False. Shard with torch's fully_shard (FSDP2), "
        "or use ZeRO stage 0"
    )


def _misfit(view: MatrixView, shape: torch.Size) -> str:
    """Why the view does not fit; empty if it does."""
    try:
        view.shapes(shape)
    except ValueError as error:
        return str(error)
    return ""


def with_gradients(group: Group, index: int) -> list[int]:
    """The places in a group of the parameters that have a gradient with at least one entry.

    No rule need know what a matrix without entries is.

    Raises:
        RuntimeError: If a gradient is sparse.
    """
    places = [i for i, p in enumerate(group["params"]) if p.grad is not None and p.numel()]
    for i in places:
        if group["params"][i].grad.is_sparse:
            name = name_of(group, index, i)
            raise RuntimeError(f"{name} has a sparse gradient; only dense ones are supported")
    return places


def together(groups: Sequence[Group], members: Members, shared: bool) -> list[Members]:
    """Places cut into what is stepped at once: matrices first, then entries group by group.

    Matrices all together where work is shared; else by group, equal shapes together, in bounded
    memory.
    """
    matrices = [i for i in members if isinstance(groups[i]["rule"], UpdateRule)]
    entries = [{i: places} for i, places in members.items() if i not in matrices]
    if shared:
        return [{i: members[i] for i in matrices}, *entries]
    parts = [
        {i: [members[i][place] for place in part]}
        for i in matrices
        for part in parts_of_a_step([groups[i]["params"][place] for place in members[i]])
    ]
    return [*parts, *entries]
