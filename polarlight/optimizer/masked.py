"""Step that leaves parameters with non-finite gradients unchanged, selected on the device.

The host does not wait to learn which gradients are finite. Each parameter has a flag, a bool []
tensor on its device, and every write is `torch.where(flag, new, old)`. Weight and state of a
parameter whose flag is False keep their bits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polarlight.execution.param_task import placed_like
from polarlight.linalg import foreach
from polarlight.linalg.slot import GRADIENT
from polarlight.rule import MOMENTUM, ElementwiseRule, Momentum, UpdateRule
from polarlight.view import MatrixView

FiniteFlags = list[Tensor] | None
"""One bool [] per parameter of a list, True where its gradient is finite; None if all are."""

FiniteMask = Mapping[int, Tensor] | None
"""Flags by param index in a group; an absent index is finite. None if all are."""

State = dict[str, Tensor]
"""Buffers of one parameter by name."""


def mask_for(mask: FiniteMask, param_indices: Sequence[int]) -> FiniteFlags:
    """Return the flags of some parameters of a group, in the order of their indices."""
    if mask is None:
        return None
    return [mask.get(i, torch.ones((), dtype=torch.bool)) for i in param_indices]


def update_momenta(
    momentum: Momentum,
    states: Sequence[Mapping[str, Tensor]],
    gradients: Sequence[Tensor],
    buffers: Sequence[Tensor],
    beta: float | Tensor,
    finite: FiniteFlags,
) -> list[Tensor]:
    """Update momentum buffers in place where gradients are finite; return what rules map."""
    average = momentum.bind_state(states)
    if finite is None:
        return average(gradients, buffers, beta)
    # For an EMA, substitute G = M: the buffer is unchanged. Other conventions are undone by a
    # copy, and so is the extra state of every convention.
    extra = [[state[name] for name in momentum.extra_state] for state in states]
    if momentum.buffered and not momentum.is_ema:
        extra = [[b, *tensors] for b, tensors in zip(buffers, extra, strict=True)]
    before = [[x.clone() for x in tensors] for tensors in extra]
    substitutes = (
        buffers
        if momentum.buffered
        else [torch.zeros((), dtype=g.dtype, device=g.device) for g in gradients]
    )
    replaced = zip(finite, gradients, substitutes, strict=True)
    result = average([torch.where(ok, g, s) for ok, g, s in replaced], buffers, beta)
    for ok, new, old in zip(finite, extra, before, strict=True):
        _restore_where_nonfinite(new, old, [ok] * len(new))
    if not momentum.buffered:
        return result
    # `commit_where_finite` zeroes directions in place; a rule may return the buffer as direction.
    return [M.clone() if M is b else M for M, b in zip(result, buffers, strict=True)]


def with_gradients_read(
    rule: UpdateRule,
    view: MatrixView,
    params: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[State],
    finite: FiniteFlags,
) -> Sequence[State]:
    """Return the states with the local gradients beside the buffers, if the rule reads them.

    Zero takes the place of a gradient that is not finite.
    """
    if not rule.reads_gradient(shape for p in params for shape in view.shapes(p.shape)):
        return states
    if finite is not None:
        pairs = zip(finite, gradients, strict=True)
        gradients = [torch.where(ok, g, torch.zeros((), dtype=g.dtype)) for ok, g in pairs]
    return [
        {**state, GRADIENT: placed_like(g, p)}
        for state, g, p in zip(states, gradients, params, strict=True)
    ]


def clone_buffers(states: Sequence[State]) -> list[State]:
    """Return clones of all buffers but the momentum, for a rule to write to."""
    return [
        {name: value.clone() for name, value in state.items() if name != MOMENTUM}
        for state in states
    ]


def commit_where_finite(
    directions: Sequence[Tensor],
    states: Sequence[State],
    written: Sequence[Mapping[str, Tensor]],
    finite: Sequence[Tensor],
) -> None:
    """Copy written buffers into the states, and zero directions of non-finite gradients."""
    for ok, state, clones in zip(finite, states, written, strict=True):
        for name, value in clones.items():
            if name == GRADIENT:
                continue
            state[name].copy_(torch.where(ok.to(value.device), value, state[name]))
    for ok, direction in zip(finite, directions, strict=True):
        direction.mul_(ok)


def decay_where_finite(
    params: Sequence[Tensor], factor: float | Tensor, finite: FiniteFlags
) -> None:
    """Multiply weights by the decay factor in place where gradients are finite."""
    if finite is None:
        foreach.mul_(params, factor)
        return
    for ok, p in zip(finite, params, strict=True):
        p.copy_(torch.where(ok, p * factor, p))


_FUSED_DEVICES = {"cpu", "cuda", "meta"}
"""Devices on which torch's fused kernels can skip a parameter by a flag."""


def step_where_finite(
    rule: ElementwiseRule,
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: list[State],
    finite: FiniteFlags,
    **numbers: Any,
) -> None:
    """Step parameters by an elementwise rule where gradients are finite.

    A rule whose fused kernel takes flags does the selection itself. Steps of other rules, and
    steps in a graph of `torch.compile`, are undone where a gradient is not finite.
    """
    if finite is None:
        rule.step(parameters, gradients, states, **numbers)
        return
    fused = {p.device.type for p in parameters} <= _FUSED_DEVICES
    fused = fused and foreach.have_kernels(parameters) and not torch.compiler.is_compiling()
    if fused and rule.has_step_finite:
        rule.step_finite(parameters, gradients, states, finite, **numbers)
        return
    written = [[p, *state.values()] for p, state in zip(parameters, states, strict=True)]
    before = [[x.clone() for x in tensors] for tensors in written]
    rule.step(parameters, gradients, states, **numbers)
    for ok, tensors, old in zip(finite, written, before, strict=True):
        _restore_where_nonfinite(tensors, old, [ok.to(x.device) for x in tensors])


def _restore_where_nonfinite(
    written: Sequence[Tensor], before: Sequence[Tensor], finite: Sequence[Tensor]
) -> None:
    """Copy clones back into tensors whose flag is False."""
    for new, old, ok in zip(written, before, finite, strict=True):
        new.copy_(torch.where(ok, new, old))
