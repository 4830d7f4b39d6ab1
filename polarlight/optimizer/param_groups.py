"""Param groups: checks, the parameters active in a step, and their partition into batches."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from polarlight.execution.batched import step_stacks
from polarlight.execution.sharded.foreign import refuse_flattened, refuse_tensor_parallel
from polarlight.lookup import check_fraction, check_object, check_rate
from polarlight.rule import ElementwiseRule, UpdateRule
from polarlight.view import Whole

Group = dict[str, Any]
StateDict = dict[str, Any]

ActiveParams = Mapping[int, list[int]]
"""Param indices in each group, by group index, of the parameters that a step moves."""

STRUCTURE = ("rule", "view")
"""Entries that are objects: a checkpoint holds their fingerprints and never replaces them."""


def clone_shared_tensors(groups: Sequence[Group]) -> None:
    """Replace, in each group, a tensor (such as lr) that an earlier group holds too by a clone.

    Whoever writes to the rate of each group would write to a shared one once per group.
    """
    known: set[int] = set()
    for group in groups:
        for key, value in group.items():
            if isinstance(value, Tensor):
                group[key] = value.clone() if id(value) in known else value
                known.add(id(group[key]))


def name_of(group: Mapping[str, Any], group_index: int, param_index: int) -> str:
    """Return the name of a parameter, or `param_groups[i]['params'][k]` if it has none."""
    names = group.get("param_names")
    if names and len(names) == len(group["params"]):  # else a wrapper replaced them, as FSDP1 does
        return str(names[param_index])
    return f"param_groups[{group_index}]['params'][{param_index}]"


def names_of(group: Mapping[str, Any], group_index: int) -> list[str]:
    """Return the names of a group's parameters; `param_groups[i]['params'][k]` for unnamed ones."""
    names = group.get("param_names")
    if names and len(names) == len(group["params"]):
        return list(map(str, names))
    return [name_of(group, group_index, k) for k in range(len(group["params"]))]


def named_params(optimizer: Optimizer) -> list[tuple[str, Tensor, Group]]:
    """Return (name, parameter, group) of every parameter of any torch optimizer."""
    return [
        (name_of(group, i, k), p, group)
        for i, group in enumerate(optimizer.param_groups)
        for k, p in enumerate(group["params"])
    ]


def check_hyperparameters(group: Group) -> None:
    """Raise ValueError unless lr, weight decay and momentum of a group are in their ranges."""
    check_rate("lr", group["lr"])
    check_rate("weight_decay", group["weight_decay"])
    check_fraction("momentum", group["momentum"])


def check_group(group: Group, group_index: int) -> None:
    """Raise ValueError unless a group's rule, view, hyperparameters and parameters fit together."""
    check_hyperparameters(group)
    _refuse_foreign_keys(group, group_index)
    check_object("view", group["view"])
    if group["rule"] is None:
        count = min(3, len(group["params"]))
        names = ", ".join(name_of(group, group_index, k) for k in range(count))
        raise ValueError(
            f"param group {group_index} ({names}, ...) has no rule: give the optimizer one, for "
            "example rule=polarlight.rules.muon(), or every group its own, as polarlight.recipes "
            "does"
        )
    if not isinstance(group["rule"], UpdateRule | ElementwiseRule):
        raise ValueError(f"rule must be an UpdateRule or an ElementwiseRule, got {group['rule']!r}")
    _check_parameters(group, group_index)


def without_frozen_integers(group: Mapping[str, Any]) -> Group:
    """Return a dict of a group's `params`, `param_names` if any, frozen integer ones left out.

    These hold quantized weights and never have a gradient. Any other tensor of integers is kept,
    for `check_group` to refuse.
    """
    params, kept = list(group["params"]), []
    for i, entry in enumerate(params):
        p = entry[1] if isinstance(entry, tuple) else entry
        frozen = isinstance(p, nn.Parameter) and not p.requires_grad
        if not frozen or p.is_floating_point() or p.is_complex():
            kept.append(i)
    changed = {"params": [params[i] for i in kept]}
    if names := group.get("param_names"):
        changed["param_names"] = [names[i] for i in kept]
    elif not kept and any(isinstance(entry, tuple) for entry in params):
        changed["param_names"] = []  # torch wants names in all groups or in none
    return changed


_FOREIGN = ("use_muon", "algorithm", "use_fallback", "betas", "eps", "adamw_betas", "adamw_eps")
"""Keys by which other libraries choose a group's method, and AdamW's, which belong to a rule."""


def _refuse_foreign_keys(group: Group, group_index: int) -> None:
    """Raise ValueError if a group has keys that other libraries read and polarlight does not."""
    found = [f"{key!r}: {group[key]!r}" for key in _FOREIGN if key in group]
    if found:
        raise ValueError(
            f"param group {group_index} has {', '.join(found)}, which polarlight does not read. "
            "Say which rule it gets: 'rule': polarlight.rules.muon(), or 'rule': "
            "polarlight.rules.AdamWRule(beta2, eps) with 'momentum': beta1. Or pass the model or "
            "model.named_parameters() to have matrices and the rest routed"
        )


def check_disjoint(groups: Sequence[Group], params: Sequence[Any]) -> None:
    """Raise ValueError if one of `params` occurs twice, or in an existing group.

    Args:
        groups: Existing groups.
        params: Tensors or `(name, tensor)` pairs of a group to be added.
    """
    known = {
        id(p): name_of(group, i, k)
        for i, group in enumerate(groups)
        for k, p in enumerate(group["params"])
    }
    twice = []
    for k, entry in enumerate(params):
        name, p = entry if isinstance(entry, tuple) else (f"params[{k}]", entry)
        if id(p) in known:
            twice.append(f"{name} (it is {known[id(p)]})")
        known.setdefault(id(p), name)
    if twice:
        raise ValueError(
            "a parameter can be in one place of one group only; "
            f"remove the second mention of: {', '.join(twice)}"
        )


def _refuse_dtypes(named: Sequence[tuple[str, Tensor]]) -> None:
    """Raise ValueError if parameters are complex, integer or boolean."""
    others = [f"{name} is {p.dtype}" for name, p in named if not p.is_floating_point()]
    if not others:
        return
    hint = ""
    if name := next((name for name, p in named if p.is_complex()), ""):
        hint = (
            f". Store torch.view_as_real({name}) as the parameter and call torch.view_as_complex "
            "in forward; or pass model.named_parameters() without it, and it to an optimizer of "
            "torch"
        )
    raise ValueError(
        f"{', '.join(others)}; only real floating-point parameters are supported{hint}"
    )


_UNROUTED = (
    "Where you cannot pass the model: in transformers.Trainer give optimizer_cls_and_kwargs="
    "(polarlight.integrations.trainer.factory(polarlight.Muon), {...}), not the class, with `from "
    "polarlight.integrations import trainer`; to add a module later: for group in "
    "polarlight.rules.with_adamw(module): optimizer.add_param_group(group)"
)
"""Ways out for parameters that come without names, in messages."""


def _check_parameters(group: Group, group_index: int) -> None:
    """Raise ValueError unless dtypes and shapes of a group's parameters fit its rule and view."""
    rule, view = group["rule"], group["view"]
    named = [(name_of(group, group_index, k), p) for k, p in enumerate(group["params"])]
    _refuse_dtypes(named)
    if not isinstance(rule, UpdateRule):
        return
    refuse_tensor_parallel(named)
    if named and all(p.ndim < 2 for _, p in named):
        check_is_matrix(group, group_index, 0)
    odd = [f"{name} has shape {tuple(p.shape)}" for name, p in named if p.ndim != 2]
    if view is None and odd:
        raise ValueError(
            f"{', '.join(odd)}; {rule.name} is for matrices. Pass the model or "
            "model.named_parameters() to have everything else routed to AdamW, give it to another "
            "optimizer, or say which part of it is a matrix: "
            "{'params': [...], 'view': polarlight.view.Whole()} takes leading dimensions as batch. "
            f"{_UNROUTED}"
        )
    misfits = []
    for name, p in named:
        try:
            (view or Whole()).shapes(p.shape)
        except ValueError as error:
            misfits.append(f"{name}: {error}")
    if misfits:
        raise ValueError("\n".join(misfits))


def check_not_flattened(groups: Sequence[Group]) -> None:
    """Raise ValueError if FSDP1 flattened parameters and all of those now have one dimension."""
    refuse_flattened(
        (name_of(group, i, k), p)
        for i, group in enumerate(groups)
        for k, p in enumerate(group["params"])
    )


def check_is_matrix(group: Group, group_index: int, param_index: int) -> None:
    """Raise ValueError if a parameter has a rule for matrices and fewer than two dimensions."""
    rule, p = group["rule"], group["params"][param_index]
    if not isinstance(rule, UpdateRule) or p.ndim >= 2:
        return
    names = [str(name) for name in group.get("param_names") or ()]
    once = f", once {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""
    name = name_of(group, group_index, param_index)
    raise ValueError(
        f"param group {group_index}{once}: {name} has shape {tuple(p.shape)}, "
        f"and {rule.name} is for matrices. Either it is a vector: pass the model or "
        f"model.named_parameters() to have vectors routed to AdamW. {_UNROUTED}. Or a wrapper "
        "flattened the group into one tensor, in which no matrix can be found again: DeepSpeed "
        "does so under ZeRO 1 to 3, FSDP1 with use_orig_params=False. Shard with torch's "
        "fully_shard (FSDP2), or use ZeRO stage 0"
    )


def indices_with_gradients(group: Group, group_index: int) -> list[int]:
    """Return the indices of a group's nonempty parameters with a gradient; raise for sparse ones.

    Raises:
        RuntimeError: If a gradient is sparse.
    """
    params = group["params"]
    gradients = [p.grad for p in params]
    found = [k for k, g in enumerate(gradients) if g is not None and params[k].numel()]
    for k in found:
        if gradients[k].is_sparse:
            name = name_of(group, group_index, k)
            raise RuntimeError(f"{name} has a sparse gradient; only dense ones are supported")
    return found


def partition_for_step(
    groups: Sequence[Group], active: ActiveParams, *, one_batch: bool
) -> list[ActiveParams]:
    """Return batches {group: param indices}: matrices (by shape or `one_batch`), then elementwise.

    Matrices of all groups are one batch where processes share the work, to balance it over them.
    Otherwise a batch has matrices of groups that are alike, in bounded memory, by shape.
    """
    matrices = [i for i in active if isinstance(groups[i]["rule"], UpdateRule)]
    elementwise = [{i: param_indices} for i, param_indices in active.items() if i not in matrices]
    if one_batch:
        return [{i: active[i] for i in matrices}, *elementwise]
    batches: list[ActiveParams] = []
    for alike in alike_groups(groups, matrices):
        places = [(i, k) for i in alike for k in active[i]]
        for stack in step_stacks([groups[i]["params"][k] for i, k in places]):
            batch: dict[int, list[int]] = {}
            for position in stack:
                i, k = places[position]
                batch.setdefault(i, []).append(k)
            batches.append(batch)
    return [*batches, *elementwise]


def alike_groups(groups: Sequence[Group], group_indices: Iterable[int]) -> list[list[int]]:
    """Return lists of indices of groups with equal settings; each alone on a CPU and in graphs.

    The settings are the rule, the view, the hyperparameters, and stochastic rounding.

    On a CPU each group stays alone: merging saves launches, and changes what is multiplied as one
    batch. So it does in a graph of `torch.compile`, where each momentum is a tensor of its own.
    """
    if torch.compiler.is_compiling():
        return [[i] for i in group_indices]
    found: dict[Hashable, list[int]] = {}
    for i in group_indices:
        group = groups[i]
        numbers = [group[key] for key in ("lr", "weight_decay", "momentum", "maximize")]
        key: Hashable = (
            id(group["rule"]),
            id(view) if (view := group["view"]).__hash__ is None else view,
            bool(group.get("stochastic_rounding")),
            *(id(x) if isinstance(x, Tensor) else x for x in numbers),
        )
        on_cpu = any(p.device.type == "cpu" for p in group["params"])
        found.setdefault(i if on_cpu else key, []).append(i)
    return list(found.values())
