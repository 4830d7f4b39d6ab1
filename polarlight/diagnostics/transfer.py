"""Numbers from the device to the host, all at once."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def to_host(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same nested dict with a float for every tensor of one element, a list for every other.

    One transfer per device, however many tensors there are; what is no tensor stays as it is.
    Booleans and integers come back as floats.
    """
    found = list(_tensors(tree))
    values: dict[int, float | list[float]] = {}
    for device in {x.device for x in found}:
        values |= _moved([x for x in found if x.device == device])
    return {key: _with_values(value, values) for key, value in tree.items()}


def _tensors(tree: Any) -> "list[Tensor]":
    if isinstance(tree, Tensor):
        return [tree]
    children = tree.values() if isinstance(tree, Mapping) else ()
    return [x for child in children for x in _tensors(child)]


def _moved(tensors: list[Tensor]) -> dict[int, float | list[float]]:
    """The values of tensors of one device, by id."""
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
    if isinstance(tree, Tensor):
        return values[id(tree)]
    if isinstance(tree, Mapping):
        return {key: _with_values(child, values) for key, child in tree.items()}
    return tree
