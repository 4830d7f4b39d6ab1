"""Update of weights by their directions, the state before the first step, stochastic rounding.

Elementwise rules step float16 weights in float32, and keep their statistics in it: float16 cannot
hold the square of a gradient beyond 255 or below 1e-4.

bfloat16 weights can be rounded stochastically. To nearest, an update below 2^-9 of an entry changes
nothing, however often it comes. Stochastic rounding moves one entry in so many: right on average.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from polarlight.execution.param_task import (
    is_sharded,
    local_tensors,
    new_param_buffers,
    to_local,
)
from polarlight.execution.sharded import collectives
from polarlight.linalg import foreach
from polarlight.lookup import check_optimizer
from polarlight.optimizer.masked import (
    FiniteFlags,
    State,
    decay_where_finite,
    step_where_finite,
)
from polarlight.optimizer.param_groups import Group
from polarlight.rule import Momentum, UpdateRule
from polarlight.stages.rounding import round_stochastically
from polarlight.view import Whole

STOCHASTIC_ROUNDING = "stochastic_rounding"
"""Key of a param group: whether its bfloat16 weights are rounded stochastically."""

ROUNDING_STEP = "weight_draws"
"""State key of a stochastically rounded parameter: its number of steps, int32 []."""

Optimizing = TypeVar("Optimizing", bound=Optimizer)


def with_stochastic_rounding(optimizer: Optimizing) -> Optimizing:
    """Set all groups of an optimizer to round bfloat16 weights stochastically; return it.

        optimizer = with_stochastic_rounding(Aurora(model.bfloat16(), lr=0.02))

    It replaces float32 master weights at less than half of their memory, by two bytes per weight:
    updates of any size arrive on average. Weights of other dtypes are not concerned. A group can
    also choose for itself, with `"stochastic_rounding": True`.

    State: `weight_draws`, int32 [], the number of steps. The random bits are a hash of this number,
    of an entry's index and of its value (`stages/rounding.py`). No generator is used: a run resumed
    from a state dict continues bit for bit, and copies on several processes stay equal. Under AdamW
    the moments of such parameters are float32. Extra memory in a step: one float32 copy of the
    weights of a batch.

    Args:
        optimizer: One of polarlight's, best before its first step; it is changed.

    Returns:
        The optimizer.

    Raises:
        TypeError: If it is no optimizer.
    """
    check_optimizer("with_stochastic_rounding", optimizer)
    optimizer.defaults[STOCHASTIC_ROUNDING] = True
    for group in optimizer.param_groups:
        group[STOCHASTIC_ROUNDING] = True
    return optimizer


def uses_stochastic_rounding(group: Group, p: Tensor) -> bool:
    """Return whether p is bfloat16 and its group asks for stochastic rounding."""
    return p.dtype == torch.bfloat16 and bool(group.get(STOCHASTIC_ROUNDING, False))


def new_state(group: Group, p: Tensor, name: str) -> dict[str, Tensor]:
    """Return new zero buffers by name: momentum, the rule's buffers, the rounding counter.

    `name` is the parameter's, for messages.
    """
    rule, more = group["rule"], {}
    if uses_stochastic_rounding(group, p):
        more = {ROUNDING_STEP: torch.zeros((), dtype=torch.int32, device=p.device)}
    if isinstance(rule, UpdateRule):
        buffers = new_param_buffers(rule, group["view"] or Whole(), p, name)
        return buffers | _new_momentum(rule.momentum, p, name) | more
    wide = torch.empty_like(p, dtype=torch.float32) if _steps_in_float32(group, p) else p
    return dict(rule.new_state(wide)) | more


def _new_momentum(momentum: Momentum, p: Tensor, name: str) -> dict[str, Tensor]:
    """Return a parameter's zero momentum buffers by name, sharded as it is.

    Raises:
        ValueError: If the momentum cannot be kept for a shard of this shape.
    """
    state = momentum.new_state(p)
    if is_sharded(p):
        if error := momentum.shard_error(p.shape, to_local(p).shape):
            raise ValueError(f"{name}: {error}")
        for key, x in state.items():
            if x.ndim and not is_sharded(x):
                state[key] = collectives.sharded_zeros(
                    p, name, x.shape, dtype=x.dtype, device=x.device
                )
    return state


def apply_update(
    group: Group,
    weights: Sequence[Tensor],
    states: Sequence[State],
    directions: list[Tensor],
    finite: FiniteFlags,
) -> None:
    """Do W <- (1 - lr wd) W - lr D in place, undecayed if not finite; count roundings in states.

    No decay where not finite: D must be zero there. Weights are rounded as the group says.
    """
    lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
    wide = _float32_copies(group, weights)
    if group["weight_decay"] != 0:
        decay_where_finite(wide, 1 - lr * group["weight_decay"], finite)
    if isinstance(lr, Tensor):
        cast = [D.to(w.dtype) for D, w in zip(directions, wide, strict=True)]
        foreach.sub_(wide, foreach.mul(cast, lr))
    else:
        foreach.add_(wide, directions, alpha=-lr)
    _write_back(weights, wide, states, finite)


def step_elementwise_group(
    group: Group,
    params: Sequence[Tensor],
    states: Sequence[State],
    finite: FiniteFlags,
) -> None:
    """Step parameters and states in place by their elementwise rule, where gradients are finite."""
    weights, gradients, _ = local_tensors(params, states, maximize=group["maximize"])
    wide = _float32_copies(group, weights)
    for w, w32, state in zip(weights, wide, states, strict=True):
        if w32 is not w:  # moments that were allocated in the parameter's narrow dtype
            state.update({key: x.float() for key, x in state.items() if x.dtype == w.dtype})
    step_where_finite(
        group["rule"],
        wide,
        [g.to(w.dtype) for g, w in zip(gradients, wide, strict=True)],
        [{key: to_local(x) for key, x in s.items() if key != ROUNDING_STEP} for s in states],
        finite,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
    )
    _write_back(weights, wide, states, finite)


def _steps_in_float32(group: Group, p: Tensor) -> bool:
    """Return whether p is stepped as a float32 copy: for stochastic rounding, elementwise float16.

    Stochastic rounding needs the unrounded weight; elementwise rules overflow in float16.
    """
    overflows = p.dtype == torch.float16 and not isinstance(group["rule"], UpdateRule)
    return overflows or uses_stochastic_rounding(group, p)


def _float32_copies(group: Group, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return float32 copies of weights that are stepped in float32; the others as they are."""
    of_dtype = {w.dtype: w for w in weights}
    narrow = {dtype for dtype, w in of_dtype.items() if _steps_in_float32(group, w)}
    return [w.float() if w.dtype in narrow else w for w in weights] if narrow else list(weights)


def _write_back(
    weights: Sequence[Tensor],
    wide: Sequence[Tensor],
    states: Sequence[State],
    finite: FiniteFlags,
) -> None:
    """Copy float32 `wide` into narrow weights, bfloat16 rounded stochastically; count in states.

    A weight whose gradient is not finite has not changed, so that rounding is exact; its step is
    not counted.
    """
    flags: Sequence[Tensor | None] = finite or [None] * len(weights)
    for w, w32, state, ok in zip(weights, wide, states, flags, strict=True):
        if w32 is not w and w.dtype == torch.float16:
            w.copy_(w32)
        elif w32 is not w:
            if ROUNDING_STEP not in state:
                state[ROUNDING_STEP] = torch.zeros((), dtype=torch.int32, device=w.device)
            state[ROUNDING_STEP] += 1 if ok is None else ok.to(state[ROUNDING_STEP].device)
            w.copy_(round_stochastically(w32, state[ROUNDING_STEP]))
