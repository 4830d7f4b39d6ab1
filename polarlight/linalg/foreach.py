"""Elementwise work on many tensors: one kernel where torch has one, a loop elsewhere.

torch keeps its kernels on lists for its own two types. A subclass may know each operation on one
tensor and none on lists; it gets the loop, as in torch's optimizers.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_NATIVE = {Tensor, Parameter}
"""Types, not their subclasses, that kernels on lists and fused kernels take."""


def have_kernels(tensors: Iterable[Tensor]) -> bool:
    """Return whether torch's kernels on lists take these tensors."""
    return set(map(type, tensors)) <= _NATIVE  # many tensors per step: no loop in Python


def as_plain(x: Tensor) -> Tensor:
    """Return x as a tensor of torch's own type; a subclass is copied into one."""
    if type(x) in _NATIVE:
        return x
    return torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)


def all_plain(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return tensors of torch's own type; subclasses are copied into one."""
    return tensors if have_kernels(tensors) else [as_plain(x) for x in tensors]


def _each(kernel: Callable[..., Any], method: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """Return a function of lists of tensors that takes the kernel, or the method in a loop."""

    def call(tensors: Sequence[Tensor], *others: Any, **options: Any) -> list[Tensor]:
        others = tuple(list(o) if isinstance(o, list | tuple) else o for o in others)
        lists = [tensors, *(other for other in others if isinstance(other, list))]
        if all(map(have_kernels, lists)):
            return list(kernel(list(tensors), *others, **options) or ())
        columns = (other if isinstance(other, list) else repeat(other) for other in others)
        return [method(*row, **options) for row in zip(tensors, *columns, strict=False)]

    return call


add = _each(torch._foreach_add, Tensor.add)
add_ = _each(torch._foreach_add_, Tensor.add_)
copy_ = _each(torch._foreach_copy_, Tensor.copy_)
lerp = _each(torch._foreach_lerp, Tensor.lerp)
lerp_ = _each(torch._foreach_lerp_, Tensor.lerp_)
mul = _each(torch._foreach_mul, Tensor.mul)
mul_ = _each(torch._foreach_mul_, Tensor.mul_)
neg = _each(torch._foreach_neg, Tensor.neg)
sub_ = _each(torch._foreach_sub_, Tensor.sub_)
