"""Load of a state dict: fingerprints are compared, and every buffer with a new one of its rule.

A buffer of another shape would be broadcast onto weights, or end the run at the next step; it is
refused before anything is loaded. Dtypes and devices may differ, as when training continues in
bfloat16: every buffer gets those of a new state.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from polarlight.linalg.rest import SIZES
from polarlight.lookup import described
from polarlight.optimizer.apply import ROUNDING_STEP, new_state
from polarlight.optimizer.fingerprint import (
    Config,
    completed_fields,
    config_of,
    differences,
    read_fingerprint,
)
from polarlight.optimizer.param_groups import (
    STRUCTURE,
    Group,
    StateDict,
    check_hyperparameters,
    name_of,
)
from polarlight.rule import HOST_COUNTER, UpdateRule

BufferForm = tuple[torch.dtype, torch.device]
"""Dtype and device of a buffer after the load."""

_MAX_LISTED = 5

WAY_OUT = (
    "Build the optimizer as it was saved, or take along what fits: polarlight.migration.carry_over("
    "old, new) from a live optimizer, load_carried(new, read_state_dict(state_dict)) by names"
)

OPTIONAL_BUFFERS = (ROUNDING_STEP, SIZES)
"""Buffers that a saved state may lack; they start at zero then.

Stochastic rounding may begin in mid-run; states of older versions have no sizes of momenta.
"""


@contextmanager
def restoring(optimizer: Optimizer, state_dict: object) -> Iterator[None]:
    """Register hooks for a load in this context: check the state dict, then fix loaded buffers.

    Loaded buffers get the dtype and device of a new state. The check runs after load hooks of
    others, which may reorder parameters.

    Raises:
        TypeError: If it is no dict.
    """
    if not isinstance(state_dict, dict):  # torch copies it before its hooks are called
        raise TypeError(
            "load_state_dict takes what state_dict() returned, a dict with 'state' and "
            f"'param_groups', got {described(state_dict)}; read a file by torch.load first"
        )
    given: StateDict = {}
    # A load hook of others may have matched states by name, and leaves the saved names in order.
    alone = not optimizer._optimizer_load_state_dict_pre_hooks
    forms: dict[Any, dict[str, BufferForm]] = {}
    saved_rules: list[Config] = []

    def check(_: Optimizer, loaded: StateDict) -> StateDict:
        """Check a loaded state dict; return it with rules and views in place of fingerprints."""
        given.update(replace_fingerprints(loaded, optimizer.param_groups))
        if alone:
            _check_order(loaded["param_groups"], optimizer.param_groups)
        forms.update(_checked_buffer_forms(given, optimizer.param_groups))
        saved_rules.extend(read_fingerprint(group["rule"]) for group in loaded["param_groups"])
        return given

    def finish(_: Optimizer) -> None:
        """Undo torch's casts of loaded buffers; adapt elementwise states to new decay rates."""
        _restore_forms(optimizer, given, forms)
        _adapt_elementwise(optimizer, saved_rules)

    before = optimizer.register_load_state_dict_pre_hook(check)
    after = optimizer.register_load_state_dict_post_hook(finish, prepend=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def replace_fingerprints(state_dict: StateDict, groups: list[Group]) -> StateDict:
    """Return a copy of a state dict with the optimizer's rules, views and names; warn or raise.

    Harmless differences of rules are listed in one warning.

    Raises:
        ValueError: If the state dict does not fit the optimizer's param groups.
    """
    saved_groups = _saved_groups(state_dict)
    if len(saved_groups) != len(groups):
        raise ValueError(
            f"the state dict has {len(saved_groups)} param groups, the optimizer has "
            f"{len(groups)}. {WAY_OUT}"
        )
    replaced = []
    differing: dict[str, list[int]] = {}
    for index, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
        for difference in _check_structure(saved, group, index):
            differing.setdefault(difference, []).append(index)
        # Names, and roles, which follow from them, are the optimizer's own where it has any.
        kept = {key: group[key] for key in STRUCTURE}
        kept |= {key: group[key] for key in ("param_names", "role") if group.get(key)}
        replaced.append(group | saved | kept)
        try:
            check_hyperparameters(replaced[-1])
        except ValueError as error:
            raise ValueError(f"param group {index} of the state dict: {error}") from error
    _warn_of_differences(differing)
    return state_dict | {"state": dict(state_dict["state"]), "param_groups": replaced}


def _saved_groups(state_dict: StateDict) -> list[Group]:
    """Return the param groups of a state dict; raise ValueError for anything else."""
    groups = state_dict.get("param_groups")
    is_groups = isinstance(groups, list) and all(isinstance(group, Mapping) for group in groups)
    if not is_groups or not isinstance(state_dict.get("state"), Mapping):
        raise ValueError(
            "expected what state_dict() returned, with 'state' and a list of 'param_groups'; "
            f"got a dict with the keys {list(state_dict)[:_MAX_LISTED]}"
        )
    return list(groups or ())


def _check_order(saved_groups: Sequence[Group], groups: Sequence[Group]) -> None:
    """Raise ValueError if a name of both has another position, counted over all groups in order.

    A state is loaded by position: momenta would go to other parameters of the same shape. Names
    that only one of the two has are no error: modules are renamed, and wrappers change names.
    """
    saved_names, own_names = (
        [str(name) for group in some for name in group.get("param_names") or ()]
        for some in (saved_groups, groups)
    )
    places = {name: k for k, name in enumerate(own_names)}
    moved = [name for k, name in enumerate(saved_names) if places.get(name, k) != k]
    if moved:
        first = moved[0]
        own = own_names[k] if (k := saved_names.index(first)) < len(own_names) else "none"
        raise ValueError(
            f"the state dict has its parameters in another order: {len(moved)} of "
            f"{len(saved_names)} names are elsewhere in the optimizer; the first is {first!r}, "
            f"where the optimizer has {own!r}. {WAY_OUT}"
        )


def _check_structure(saved: Group, group: Group, group_index: int) -> list[str]:
    """Return harmless rule differences as text; raise for others, another view or param count."""
    if "rule" not in saved:
        raise ValueError(
            f"param group {group_index} of the state dict has no rule: polarlight did not write it"
        )
    differing = _compare_fingerprints(saved, group, "rule", group_index)
    if isinstance(group["rule"], UpdateRule):  # others see no matrices
        _compare_fingerprints(saved, group, "view", group_index)
    count, saved_count = len(group["params"]), len(saved.get("params", ()))
    if count != saved_count:
        raise ValueError(
            f"param group {group_index} was saved with {saved_count} parameters, "
            f"the optimizer's has {count}"
        )
    return differing


def _compare_fingerprints(saved: Group, group: Group, key: str, group_index: int) -> list[str]:
    """Return harmless differences of a saved "rule" as text; raise for others, for any of a "view".

    Raises:
        ValueError: If a difference is not harmless; the message shows the differing fields.
    """
    config = read_fingerprint(saved.get(key))
    found = list(differences(config, config_of(group[key])))
    if not all(difference.harmless and key == "rule" for difference in found):
        raise ValueError(
            f"param group {group_index} was saved under another {key}:\n  "
            + "\n  ".join(map(str, found))
            + f"\n{WAY_OUT}"
        )
    return [str(difference) for difference in found]


def _warn_of_differences(differing: Mapping[str, list[int]]) -> None:
    """Warn once of all {difference: indices of the param groups that have it}, if there are any."""
    if differing:
        lines = (f"{text} (param groups {groups})" for text, groups in differing.items())
        warnings.warn(
            "the optimizer differs from the one that was saved; its own values are used:\n  "
            + "\n  ".join(lines),
            UserWarning,
            stacklevel=2,
        )


def _checked_buffer_forms(
    state_dict: StateDict, groups: list[Group]
) -> dict[Any, dict[str, BufferForm]]:
    """Check saved buffers, make `step` a tensor in place; return {key: {buffer: (dtype, device)}}.

    Dtypes and devices are those of a new state, one of which is in memory at a time.

    Raises:
        ValueError: If a state lacks a buffer, or one is of another shape; names the parameters.
    """
    forms: dict[Any, dict[str, BufferForm]] = {}
    wrong: list[str] = []
    for index, (saved, group) in enumerate(zip(state_dict["param_groups"], groups, strict=True)):
        for k, (key, p) in enumerate(zip(saved["params"], group["params"], strict=True)):
            state = state_dict["state"].get(key)
            if not state:
                continue
            name = name_of(group, index, k)
            fresh = new_state(saved, p, name)
            if not fresh.keys() & state.keys():
                continue  # entries of a wrapper, for a parameter that was never stepped
            state = state_dict["state"][key] = dict(state)
            step = state.get(HOST_COUNTER)
            if HOST_COUNTER in fresh and isinstance(step, int | float):
                # A number as `step` gets a new state's shape: [] of AdamW, [..., 1, 1] of SOAP.
                state[HOST_COUNTER] = torch.full_like(fresh[HOST_COUNTER], step)
            wrong += [f"{name}: {text}" for text in _misfits(state, fresh)]
            forms[key] = {buffer: (x.dtype, x.device) for buffer, x in fresh.items()}
    if wrong:
        more = f" and {len(wrong) - _MAX_LISTED} more" if len(wrong) > _MAX_LISTED else ""
        raise ValueError(
            "the saved state does not fit the parameters; are they in the saved order?\n  "
            + "\n  ".join(wrong[:_MAX_LISTED])
            + f"{more}\n{WAY_OUT}"
        )
    return forms


def _misfits(state: Mapping[str, Any], fresh: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield a message for each buffer of `fresh` that is missing or of another shape in `state`.

    Optional buffers may be missing.
    """
    for buffer, x in fresh.items():
        if buffer not in state:
            if buffer not in OPTIONAL_BUFFERS:
                yield f"{buffer} is missing"
        elif not isinstance(state[buffer], Tensor):
            yield f"{buffer} is a {type(state[buffer]).__name__}, expected a tensor"
        elif state[buffer].shape != x.shape:
            shapes = tuple(state[buffer].shape), tuple(x.shape)
            yield f"{buffer} was saved with shape {shapes[0]}, expected {shapes[1]}"


def _restore_forms(
    optimizer: Optimizer, state_dict: StateDict, forms: Mapping[Any, Mapping[str, BufferForm]]
) -> None:
    """Replace buffers in `optimizer.state` that torch cast by saved ones, cast as `forms` says."""
    keys = (key for group in state_dict["param_groups"] for key in group["params"])
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    for key, p in zip(keys, parameters, strict=True):
        for buffer, value in state_dict["state"].get(key, {}).items():
            if isinstance(value, str):  # torch casts it letter by letter
                optimizer.state[p][buffer] = value
            if isinstance(value, Tensor):
                now = optimizer.state[p][buffer]
                dtype, device = forms.get(key, {}).get(buffer, (value.dtype, p.device))
                if not (value.dtype == now.dtype == dtype and now.device == device):
                    cast = value.detach().to(device=device, dtype=dtype, copy=True)
                    optimizer.state[p][buffer] = cast


def _adapt_elementwise(optimizer: Optimizer, saved_rules: list[Config]) -> None:
    """Adapt loaded states of elementwise rules, in place, from the saved rules' decay rates."""
    for group, config in zip(optimizer.param_groups, saved_rules, strict=True):
        if isinstance(group["rule"], UpdateRule):
            continue
        momenta = float(group["momentum"]), float(group["momentum"])  # a load takes the saved one
        for p in group["params"]:
            if state := optimizer.state.get(p):
                state.update(group["rule"].adapted_state(state, completed_fields(config), momenta))
