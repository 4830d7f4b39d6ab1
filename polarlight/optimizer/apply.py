"""What a step reads and writes beside the rules: state at the start, gradients, the weights.

Elementwise rules step float16 weights in float32, and keep their statistics in it: the square of a
gradient beyond 255 or below 1e-4 has no place in float16.

Weights in bfloat16 can be rounded at random: to nearest, an update below 2^-9 of an entry changes
nothing, however often it comes; at random it moves one entry in so many, and right on average.
"""

from collections.abc import MutableMapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from polarlight.execution.work import gradient_of, local, new_buffers_of
from polarlight.linalg import foreach
from polarlight.optimizer import masked as nonfinite
from polarlight.optimizer.masked import Finite
from polarlight.optimizer.param_groups import Group
from polarlight.rule import UpdateRule
from polarlight.stages.rounding import round_stochastically
from polarlight.view import Whole

AT_RANDOM = "stochastic_rounding"
"""Entry of a param group: whether bfloat16 weights are rounded at random."""

DRAWS = "weight_draws"
"""State of such a parameter: the steps taken, int32 []."""

State = MutableMapping[str, Tensor]
Optimizing = TypeVar("Optimizing", bound=Optimizer)


def with_stochastic_rounding(optimizer: Optimizing) -> Optimizing:
    """Lets bfloat16 weights be rounded at random, right on average, instead of to nearest.

        optimizer = with_stochastic_rounding(Aurora(model.bfloat16(), lr=0.02))

    It stands for float32 masters, at two bytes per weight less than half of theirs: updates of any
    size arrive on average. Weights of other dtypes are not concerned. A group may say so for itself
    as well, with `"stochastic_rounding": True`.

    State: `weight_draws`, int32 [], the steps taken. The random bits are a hash of it, of an
    entry's place and of its value (`stages/rounding.py`): no generator is used, a run resumed from
    a state dict goes on bit for bit, and copies on several processes stay equal. Under AdamW the
    moments of such parameters are float32. Extra memory in a step: one float32 copy of the weights
    that are stepped at once.

    Args:
        optimizer: One of polarlight's, best before its first step; it is changed.

    Returns:
        The optimizer.
    """
    optimizer.defaults[AT_RANDOM] = True
    for group in optimizer.param_groups:
        group[AT_RANDOM] = True
    return optimizer


def new_state(group: Group, p: Tensor, name: str) -> dict[str, Tensor]:
    """The state of a parameter before its first step."""
    rule = group["rule"]
    more = {DRAWS: _no_draws(p)} if is_rounded_at_random(group, p) else {}
    if not isinstance(rule, UpdateRule):
        return dict(rule.new_state(_like(p, _is_widened(group, p)))) | more
    buffers = new_buffers_of(rule, group["view"] or Whole(), p, name)
    return buffers | rule.momentum.new_state(p) | more


def is_rounded_at_random(group: Group, p: Tensor) -> bool:
    """Return whether a parameter's steps are rounded to bfloat16 at random."""
    return p.dtype == torch.bfloat16 and bool(group.get(AT_RANDOM, False))


def _is_widened(group: Group, p: Tensor) -> bool:
    """Whether it is stepped in float32: to be rounded at random, or squared beyond float16."""
    squared = p.dtype == torch.float16 and not isinstance(group["rule"], UpdateRule)
    return squared or is_rounded_at_random(group, p)


def _like(p: Tensor, wide: bool) -> Tensor:
    """Itself, or something of its shape in float32."""
    return torch.empty_like(p, dtype=torch.float32) if wide else p


def _no_draws(p: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.int32, device=p.device)


def gradients(group: Group, params: list[Tensor]) -> list[Tensor]:
    """What of the gradients lies here, in the direction in which the loss grows or falls."""
    found = [gradient_of(p) for p in params]
    return foreach.neg(found) if group["maximize"] else found


def move(
    group: Group,
    params: list[Tensor],
    states: Sequence[State],
    directions: list[Tensor],
    finite: Finite,
) -> None:
    """W <- (1 - lr weight_decay) W - lr direction; weights that are left out do not decay."""
    lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
    exact = _widened(group, params)
    if group["weight_decay"] != 0:
        nonfinite.decay(exact, 1 - lr * group["weight_decay"], finite)
    if isinstance(lr, Tensor):
        wide = [D.to(w.dtype) for D, w in zip(directions, exact, strict=True)]
        foreach.sub_(exact, foreach.mul(wide, lr))
    else:
        foreach.add_(exact, directions, alpha=-lr)
    _round(params, exact, states, finite)


def step_entries(
    group: Group,
    params: list[Tensor],
    states: list[dict[str, Tensor]],
    finite: Finite,
    momentum: float | Tensor | None = None,
) -> None:
    """One step of a group whose rule is elementwise; `momentum` stands in for the group's."""
    here, found = [local(p) for p in params], gradients(group, params)
    exact = _widened(group, here)
    for p, w, state in zip(here, exact, states, strict=True):
        if w is not p:  # moments that were begun in the parameter's dtype
            late = {key: x.float() for key, x in state.items() if x.dtype == p.dtype}
            state.update(late)
    nonfinite.step_entries(
        group["rule"],
        exact,
        [g.to(w.dtype) for g, w in zip(found, exact, strict=True)],
        [{key: local(x) for key, x in state.items() if key != DRAWS} for state in states],
        finite,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        momentum=group["momentum"] if momentum is None else momentum,
    )
    _round(here, exact, states, finite)


def _widened(group: Group, params: list[Tensor]) -> list[Tensor]:
    """Float32 copies of what is stepped in float32; the others themselves."""
    return [p.float() if _is_widened(group, p) else p for p in params]


def _round(
    params: Sequence[Tensor], exact: Sequence[Tensor], states: Sequence[State], finite: Finite
) -> None:
    """Takes the copies over; what is left out draws nothing, and stays: it needs no rounding."""
    oks: Sequence[Tensor | None] = finite or [None] * len(params)
    for p, w, state, ok in zip(params, exact, states, oks, strict=True):
        if w is not p and p.dtype == torch.float16:
            p.copy_(w)
        elif w is not p:
            draws = state.setdefault(DRAWS, _no_draws(p))
            draws += 1 if ok is None else ok.to(draws.device)
            p.copy_(round_stochastically(w, draws))
