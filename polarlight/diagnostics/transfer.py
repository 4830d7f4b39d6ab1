"""Transfer of nested tensors to the host in one copy per device."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def to_host(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Replace each one-element tensor in a nested dict by a float, each other tensor by a list.

    One copy per device, for any number of tensors; other values stay as they are. Booleans and
    integers come back as floats.
    """
    found = list(_tensors(tree))
    values: dict[int, float | list[float]] = {}
    for device in {x.device for x in found}:
        values |= _moved([x for x in found if x.device == device])
    return {key: _with_values(value, values) for key, value in tree.items()}


def _tensors(tree: Any) -> "list[Tensor]":
    """Return all tensors of a nested dict."""
    if isinstance(tree, Tensor):
        return [tree]
    children = tree.values() if isinstance(tree, Mapping) else ()
    return [x for child in children for x in _tensors(child)]


def _moved(tensors: list[Tensor]) -> dict[int, float | list[float]]:
    """Copy tensors of one device to the host at once; return their values by id."""
    wide = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    joined = torch.cat([x.detach().reshape(-1).to(wide) for x in tensors]).tolist()
    values: dict[int, float | list[float]] = {}
    start = 0
    for x in tensors:
        part = joined[start : start + x.numel()]
        values[id(x)] = part[0] if x.numel() == 1 else part
        start += x.numel()
    return values


def _with_values(tree: Any, values: Mapping[int, float | list[float]]) -> Any:
    """Rebuild a nested dict with host values in place of tensors."""
    if isinstance(tree, Tensor):
        return values[id(tree)]
    if isinstance(tree, Mapping):
        return {key: _with_values(child, values) for key, child in tree.items()}
    return tree
