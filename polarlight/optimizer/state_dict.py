"""Taking over a saved state: rules and views from text, every buffer held against the rule's own.

A state of another shape would be added to weights by broadcasting, or end the run at the next step;
it is refused before anything is taken over. Dtypes and devices may differ, as when weights in
float32 go on in bfloat16: every buffer gets those that the optimizer itself would have chosen.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from polarlight.linalg.rest import SIZES
from polarlight.optimizer import apply as movement
from polarlight.optimizer.param_groups import STRUCTURE, Group, StateDict, check_numbers, name_of
from polarlight.rule import UpdateRule

Form = tuple[torch.dtype, torch.device]
"""What a saved buffer becomes."""

_MOST_SAID = 5

LATER = (movement.DRAWS, SIZES)
"""Buffers that a saved state may lack, and that start at zero then.

Rounding at random may begin in mid-run; states of older versions have no sizes of momenta.
"""


@contextmanager
def restoring(optimizer: Optimizer) -> Iterator[None]:
    """Around torch's `load_state_dict`: checks what it is given, and undoes its casts.

    Works on what other people's hooks make of the state dict: they may put parameters in another
    order.
    """
    given: StateDict = {}
    forms: dict[Any, dict[str, Form]] = {}

    def last_before(_: Optimizer, loaded: StateDict) -> StateDict:
        given.update(with_objects(loaded, optimizer.param_groups))
        forms.update(_forms(given, optimizer.param_groups))
        return given

    def first_after(_: Optimizer) -> None:
        _restore_forms(optimizer, given, forms)
        _complete(optimizer)

    before = optimizer.register_load_state_dict_pre_hook(last_before)
    after = optimizer.register_load_state_dict_post_hook(first_after, prepend=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def with_objects(state_dict: StateDict, groups: list[Group]) -> StateDict:
    """A copy of `state_dict` with the optimizer's own rules and views in place of their text."""
    saved_groups = _saved_groups(state_dict)
    if len(saved_groups) != len(groups):
        raise ValueError(
            f"the state dict has {len(saved_groups)} param groups, the optimizer has {len(groups)}"
        )
    replaced = []
    for index, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
        _check_structure(saved, group, index)
        replaced.append(group | saved | {key: group[key] for key in STRUCTURE})
        try:
            check_numbers(replaced[-1])
        except ValueError as error:
            raise ValueError(f"param group {index} of the state dict: {error}") from error
    return state_dict | {"param_groups": replaced}


def _saved_groups(state_dict: StateDict) -> list[Group]:
    """The param groups of a state dict."""
    groups = state_dict.get("param_groups")
    is_groups = isinstance(groups, list) and all(isinstance(group, Mapping) for group in groups)
    if not is_groups or not isinstance(state_dict.get("state"), Mapping):
        raise ValueError(
            "expected what state_dict() returned, with 'state' and a list of 'param_groups'; "
            f"got a dict with the keys {list(state_dict)[:_MOST_SAID]}"
        )
    return list(groups or ())


def _check_structure(saved: Group, group: Group, index: int) -> None:
    if "rule" not in saved:
        raise ValueError(
            f"param group {index} of the state dict has no rule: polarlight did not write it"
        )
    for key in STRUCTURE:
        if saved.get(key) != repr(group[key]):
            raise ValueError(
                f"param group {index} was saved with another {key}:\n"
                f"  saved:     {saved.get(key)}\n  optimizer: {group[key]!r}\n"
                "Build the optimizer with the saved one, or start from fresh state."
            )
    here, there = len(group["params"]), len(saved.get("params", ()))
    if here != there:
        raise ValueError(
            f"param group {index} was saved with {there} parameters, the optimizer's has {here}"
        )


def _forms(given: StateDict, groups: list[Group]) -> dict[Any, dict[str, Form]]:
    """By saved parameter and buffer, dtype and device; one fresh state at a time is in memory.

    Raises:
        ValueError: If a state lacks a buffer, or one is of another shape; names the parameters.
    """
    forms: dict[Any, dict[str, Form]] = {}
    wrong: list[str] = []
    for index, (saved, group) in enumerate(zip(given["param_groups"], groups, strict=True)):
        for place, (key, p) in enumerate(zip(saved["params"], group["params"], strict=True)):
            state = given["state"].get(key)
            if not state:
                continue
            name = name_of(group, index, place)
            fresh = movement.new_state(saved, p, name)
            wrong += [f"{name}: {said}" for said in _misfits(state, fresh)]
            forms[key] = {buffer: (x.dtype, x.device) for buffer, x in fresh.items()}
    if wrong:
        more = f" and {len(wrong) - _MOST_SAID} more" if len(wrong) > _MOST_SAID else ""
        raise ValueError(
            "the saved state does not fit the parameters; are they in the saved order?\n  "
            + "\n  ".join(wrong[:_MOST_SAID])
            + more
        )
    return forms


def _misfits(state: Mapping[str, Any], fresh: Mapping[str, Tensor]) -> Iterator[str]:
    """What is wrong with a saved state, beside one of the same parameter from the start."""
    for buffer, x in fresh.items():
        if buffer not in state:
            if buffer not in LATER:
                yield f"{buffer} is missing"
        elif not isinstance(state[buffer], Tensor):
            yield f"{buffer} is a {type(state[buffer]).__name__}, expected a tensor"
        elif state[buffer].shape != x.shape:
            shapes = tuple(state[buffer].shape), tuple(x.shape)
            yield f"{buffer} was saved with shape {shapes[0]}, expected {shapes[1]}"


def _restore_forms(
    optimizer: Optimizer, given: StateDict, forms: Mapping[Any, Mapping[str, Form]]
) -> None:
    """Undoes torch's cast of loaded state to the parameter's dtype."""
    keys = (key for group in given["param_groups"] for key in group["params"])
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    for key, p in zip(keys, parameters, strict=True):
        for buffer, value in given["state"].get(key, {}).items():
            if isinstance(value, Tensor):
                now = optimizer.state[p][buffer]
                dtype, device = forms[key].get(buffer, (value.dtype, p.device))
                if not (value.dtype == now.dtype == dtype and now.device == device):
                    cast = value.detach().to(device=device, dtype=dtype, copy=True)
                    optimizer.state[p][buffer] = cast


def _complete(optimizer: Optimizer) -> None:
    """Give loaded states the sizes of their momenta where an older version saved none."""
    for index, group in enumerate(optimizer.param_groups):
        for place, p in enumerate(group["params"]):
            state = optimizer.state.get(p)
            if state and SIZES not in state and isinstance(group["rule"], UpdateRule):
                fresh = movement.new_state(group, p, name_of(group, index, place))
                state.update({SIZES: fresh[SIZES]} if SIZES in fresh else {})
