"""Step that leaves parameters with non-finite gradients unchanged, selected on the device.

The host does not wait to learn which gradients are finite. Each parameter has a flag, a bool []
tensor on its device, and every write is `torch.where(flag, new, old)`. Weight and state of a
parameter whose flag is False keep their bits.

One operator serves many parameters. Equal shapes below `LARGE` entries are selected in stacks
[b, *shape] with flags [b, 1, ...], tensors of elementwise rules in one flat vector. Copies into a
stack cost bytes, and launches per tensor cost time on the host: a larger tensor is selected alone.
In a graph of `torch.compile` all are, since the compiler fuses launches and copies alike.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polarlight.execution.batched import capped_stacks
from polarlight.execution.param_task import ParamTask, placed_like
from polarlight.linalg import foreach
from polarlight.linalg.matrices import wide
from polarlight.linalg.slot import GRADIENT
from polarlight.linalg.stacks import (
    as_column,
    by_kind,
    clone_together,
    flat_copy,
    parts_of,
    stack_of,
    stacked,
    to_devices_of,
)
from polarlight.rule import MOMENTUM, ElementwiseRule, Momentum, UpdateRule
from polarlight.view import MatrixView

FiniteFlags = list[Tensor] | None
"""One bool [] per parameter of a list, True where its gradient is finite; None if all are."""

FiniteMask = Mapping[int, Tensor] | None
"""Flags by param index in a group; an absent index is finite. None if all are."""

State = dict[str, Tensor]
"""Buffers of one parameter by name."""


class AlikeTasks(NamedTuple):
    """Parameters whose groups have equal rule and hyperparameters, with their momenta updated.

    Attributes:
        places: Group index and param index of each.
        weights: Their local parts.
        states: Their buffers.
        tasks: Their tasks.
        finite: Their flags.
    """

    places: Sequence[tuple[int, int]]
    weights: list[Tensor]
    states: list[State]
    tasks: list[ParamTask]
    finite: FiniteFlags


LARGE = 2**22
"""Entries from which a tensor is selected alone: a launch then takes less time than a copy."""

LARGE_TABLE = 2**20
"""The same for elementwise rules, which have three tensors per parameter to select."""

UNDONE_BYTES = 32 * 2**20
"""Most bytes of small parameters that an elementwise rule steps at a time, where flags may undo it.

Copies of weights and states from before and after take about ten times as much.
"""


def flags_from_mask(
    mask: FiniteMask, param_indices: Sequence[int], params: Sequence[Tensor]
) -> FiniteFlags:
    """Return one flag per index, a new True for an index that the mask lacks; None for no mask."""
    if mask is None:
        return None
    return [mask[i] if i in mask else _true_flag(params[i]) for i in param_indices]


def join_flags(
    group_indices: Sequence[int], finite: Mapping[int, FiniteFlags], params: Sequence[Tensor]
) -> FiniteFlags:
    """Return one flag per param from its group's, True for a group without; None if none has flags.

    Args:
        group_indices: Group of each parameter, group by group.
        finite: Flags of each group, in the order of its parameters.
        params: The parameters.
    """
    flagged = {i: iter(finite[i] or ()) for i in group_indices if finite[i] is not None}
    if not flagged:
        return None
    return [
        next(flagged[i]) if i in flagged else _true_flag(p)
        for i, p in zip(group_indices, params, strict=True)
    ]


def _true_flag(p: Tensor) -> Tensor:
    """Return a bool tensor [], True, on a parameter's device."""
    return torch.ones((), dtype=torch.bool, device=p.device)


def update_momenta(
    momentum: Momentum,
    states: Sequence[Mapping[str, Tensor]],
    gradients: Sequence[Tensor],
    buffers: Sequence[Tensor],
    beta: float | Tensor,
    finite: FiniteFlags,
) -> list[Tensor]:
    """Update momentum `buffers`, extra `states` in place where finite; return the rules' inputs."""
    held = momentum.loaded(buffers, gradients) if momentum.buffered else buffers
    result = _update_loaded(momentum, states, gradients, held, beta, finite)
    for buffer, used in zip(buffers, held, strict=True):
        if used is not buffer:
            buffer.copy_(used)
    return result


def _update_loaded(
    momentum: Momentum,
    states: Sequence[Mapping[str, Tensor]],
    gradients: Sequence[Tensor],
    buffers: Sequence[Tensor],
    beta: float | Tensor,
    finite: FiniteFlags,
) -> list[Tensor]:
    """Update loaded momenta and extra `states` in place where finite; return the rules' inputs."""
    average = momentum.bind_state(states)
    if finite is None:
        return average(gradients, buffers, beta)
    # For an EMA, substitute G = M: the buffer is unchanged. Other conventions are undone by a
    # copy, and so is the extra state of every convention.
    extra = [[state[name] for name in momentum.extra_state] for state in states]
    if momentum.buffered and not momentum.is_ema:
        extra = [[b, *tensors] for b, tensors in zip(buffers, extra, strict=True)]
    written = [x for tensors in extra for x in tensors]
    flags = [ok for ok, tensors in zip(finite, extra, strict=True) for _ in tensors]
    before = clone_together(written)
    result = average(
        select(finite, gradients, buffers if momentum.buffered else None), buffers, beta
    )
    _copy_where_finite(written, written, before, flags)
    if any(M is b for M, b in zip(result, buffers, strict=momentum.buffered)):
        # `commit_where_finite` zeroes directions in place; a rule may return the buffer itself.
        return clone_together(result)
    return result


def select(
    flags: Sequence[Tensor], new: Sequence[Tensor], old: Sequence[Tensor] | None
) -> list[Tensor]:
    """Return torch.where(flag, new, old) per tensor, by stacks; zeros for `old` if it is None."""
    found: dict[int, Tensor] = {}
    alone, groups = _group_stackable(flags, new, new if old is None else old)
    near = to_devices_of([new[i] for i in alone], [flags[i] for i in alone])
    for i, ok in zip(alone, near, strict=True):
        found[i] = torch.where(ok, new[i], _zero(new[i]) if old is None else old[i])
    # Two launches and not one for all copies: the old ones are freed when this function returns.
    stacks = _stacks([[new[i] for i in positions] for positions in groups])
    if old is None:
        others = [(_zero(x), True) for x, _ in stacks]
    else:
        others = _stacks([[old[i] for i in positions] for positions in groups])
    for positions, (stack, copied), (other, _) in zip(groups, stacks, others, strict=True):
        ok = _flag_column(flags, positions, stack)  # [b, 1, ...]
        selected = torch.where(ok, stack, other, out=stack if copied else None)
        found.update(zip(positions, selected.unbind(), strict=True))
    return [found[i] for i in range(len(new))]


def with_gradient_if_read(
    rule: UpdateRule,
    view: MatrixView,
    params: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[State],
    finite: FiniteFlags,
) -> Sequence[State]:
    """Return states, with the gradient (zeros if not finite) added for a rule that reads it."""
    parts = [part for shape in {p.shape for p in params} for part in view.shapes(shape)]
    if not rule.reads_gradient(parts):
        return states
    if finite is not None:
        gradients = select(finite, gradients, None)
    return [
        {**state, GRADIENT: placed_like(g, p)}
        for state, g, p in zip(states, gradients, params, strict=True)
    ]


def clone_buffers(states: Sequence[State]) -> list[State]:
    """Return states of cloned buffers, the momentum left out, for a rule to write to."""
    names = [[name for name in state if name != MOMENTUM] for state in states]
    clones = iter(
        clone_together([s[name] for s, own in zip(states, names, strict=True) for name in own])
    )
    return [{name: next(clones) for name in own} for own in names]


def commit_where_finite(
    directions: Sequence[Tensor],
    states: Sequence[State],
    written: Sequence[Mapping[str, Tensor]],
    finite: Sequence[Tensor],
) -> None:
    """Copy `written` buffers into `states` where finite; zero other directions; both in place."""
    rows = [
        (state[name], value, ok)
        for ok, state, clones in zip(finite, states, written, strict=True)
        for name, value in clones.items()
        if name != GRADIENT
    ]
    if rows:
        old, new, flags = zip(*rows, strict=True)
        _copy_where_finite(old, new, old, flags)
    alone, groups = _group_stackable(finite, directions)
    for positions in groups:
        stack = stack_of([directions[i] for i in positions])
        if stack is None:
            alone += positions
        else:
            stack.mul_(_flag_column(finite, positions, stack))
    for i in alone:
        directions[i].mul_(finite[i])


def decay_where_finite(
    params: Sequence[Tensor], factor: float | Tensor, finite: FiniteFlags
) -> None:
    """Multiply weights by the decay factor in place where gradients are finite."""
    if finite is None:
        foreach.mul_(params, factor)
        return
    alone, groups = _group_stackable(finite, params)
    for i in alone:
        if torch.compiler.is_compiling() or not foreach.have_kernels([params[i]]):
            params[i].copy_(torch.where(finite[i], params[i] * factor, params[i]))
        else:
            params[i].mul_(_factors(finite[i].view([1] * params[i].ndim), factor, params[i].dtype))
    if not groups:
        return
    order = [i for positions in groups for i in positions]
    copies = dict(zip(order, clone_together([params[i] for i in order]), strict=True))
    factors: dict[int, Tensor] = {}
    for kind in by_kind([params[i] for i in order]):
        some = [order[n] for n in kind]
        ok = stacked([finite[i] for i in some])  # bool [b]
        factors.update(zip(some, _factors(ok, factor, params[some[0]].dtype).unbind(), strict=True))
    for positions in groups:
        stack = stacked([copies[i] for i in positions])
        stack.mul_(_flag_column(factors, positions, stack))
    foreach.copy_([params[i] for i in order], [copies[i] for i in order])


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
    """Step parameters and states in place by an elementwise rule, where gradients are finite.

    Small parameters are stepped together, and undone where a gradient is not finite. For large
    ones a fused kernel that takes a flag does the selection itself, if the rule has one. Nothing
    is selected by a kernel in a graph of `torch.compile`.
    """
    if finite is None:
        rule.step(parameters, gradients, states, **numbers)
        return
    rows = list(zip(parameters, gradients, states, finite, strict=True))
    fused = {p.device.type for p in parameters} <= _FUSED_DEVICES
    fused = fused and foreach.have_kernels(parameters) and not torch.compiler.is_compiling()
    undone = rows
    if fused and rule.has_step_finite:
        small = [row for row in rows if row[0].numel() < LARGE_TABLE]
        undone = small if len(small) > 1 else []
        skipped = (
            rows if len(small) <= 1 else [row for row in rows if row[0].numel() >= LARGE_TABLE]
        )
        if skipped:
            rule.step_finite(*map(list, zip(*skipped, strict=True)), **numbers)
    for piece in capped_stacks(range(len(undone)), [row[0] for row in undone], UNDONE_BYTES):
        _step_and_restore(rule, [undone[i] for i in piece], numbers)


def _step_and_restore(
    rule: ElementwiseRule,
    rows: Sequence[tuple[Tensor, Tensor, State, Tensor]],
    numbers: Mapping[str, Any],
) -> None:
    """Step rows (p, gradient, state, flag) in place; restore p and state where the flag is False.

    Args:
        rule: The elementwise rule.
        rows: Parameter, gradient, state and flag of each.
        numbers: The scheduled numbers.
    """
    written = [x for p, _, state, _ in rows for x in (p, *state.values())]
    flags = [ok for p, _, state, ok in rows for _ in (p, *state)]
    small = [i for i, x in enumerate(written) if x.numel() < LARGE_TABLE and _has_stack_kernels(x)]
    kinds = [[small[k] for k in kind] for kind in by_kind([written[i] for i in small])]
    flat = [flat_copy([written[i] for i in kind])[0] for kind in kinds]
    before = {i: written[i].clone() for i in range(len(written)) if i not in set(small)}
    parameters, gradients, states, _ = (list(x) for x in zip(*rows, strict=True))
    rule.step(parameters, gradients, states, **numbers)
    for i, old in before.items():
        written[i].copy_(torch.where(flags[i].to(old.device), written[i], old))
    for kind, old in zip(kinds, flat, strict=True):
        tensors = [written[i] for i in kind]
        ok = torch.cat([flags[i].expand(written[i].numel()) for i in kind]).to(old.device)
        restored = torch.where(ok, flat_copy(tensors)[0], old)
        foreach.copy_(tensors, parts_of(restored, tensors))


def _has_stack_kernels(x: Tensor) -> bool:
    """Return whether tensors like x can be stacked: of torch's own type, and outside of a graph."""
    return foreach.have_kernels([x]) and not torch.compiler.is_compiling()


def _group_stackable(
    flags: Sequence[Tensor], *lists: Sequence[Tensor]
) -> tuple[list[int], list[list[int]]]:
    """Return (positions of tensors to select alone, lists of positions of tensors to stack).

    Tensors at the positions of a group have equal shapes, dtypes and devices in every list.
    """
    alone: list[int] = []
    groups: dict[Hashable, list[int]] = {}
    for i, (_, *tensors) in enumerate(zip(flags, *lists, strict=True)):
        if all(_has_stack_kernels(x) and x.numel() < LARGE for x in tensors):
            kind = tuple((x.shape, x.dtype, x.device) for x in tensors)
            groups.setdefault(kind, []).append(i)
        else:
            alone.append(i)
    alone += [i for positions in groups.values() if len(positions) == 1 for i in positions]
    return alone, [positions for positions in groups.values() if len(positions) > 1]


def _stacks(lists: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, bool]]:
    """Return (stack [b, *shape], True if it is a copy, False if it is a view) per list.

    A view where tensors already form one; one launch copies the others.
    """
    found = [stack_of(tensors) for tensors in lists]
    missing = [x for stack, xs in zip(found, lists, strict=True) if stack is None for x in xs]
    copies = iter(clone_together(missing))
    return [
        (stacked([next(copies) for _ in tensors]), True) if stack is None else (stack, False)
        for stack, tensors in zip(found, lists, strict=True)
    ]


def _flag_column(
    flags: Sequence[Tensor] | Mapping[int, Tensor], positions: Sequence[int], stack: Tensor
) -> Tensor:
    """Return flags at `positions` as [b, 1, ...] on the stack's device, to broadcast with it."""
    ok = stacked([flags[i] for i in positions]).to(stack.device)
    return as_column(ok, stack.ndim - 1)


def _zero(x: Tensor) -> Tensor:
    """Return a zero [] of the dtype and on the device of x."""
    return torch.zeros((), dtype=x.dtype, device=x.device)


def _factors(ok: Tensor, factor: float | Tensor, dtype: torch.dtype) -> Tensor:
    """Return `factor` where `ok` is True and 1 elsewhere, in float32 or float64: no rounding."""
    skipped = ok.logical_not().to(wide(dtype))
    if isinstance(factor, Tensor):
        return skipped + ok * factor.to(skipped.dtype)
    return skipped.add_(ok, alpha=factor)


def _copy_where_finite(
    targets: Sequence[Tensor],
    new: Sequence[Tensor],
    old: Sequence[Tensor],
    flags: Sequence[Tensor],
) -> None:
    """Write torch.where(flag, new, old) into each target, in place."""
    if targets:
        foreach.copy_(targets, select(flags, new, old))
