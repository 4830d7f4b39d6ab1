"""What a step reads and writes beside the rules: state at the start, gradients, the weights."""

import torch
from torch import Tensor

from polarlight import nonfinite
from polarlight.execution.work import gradient_of, new_buffers_of
from polarlight.groups import Group
from polarlight.nonfinite import Finite
from polarlight.rule import UpdateRule, momentum_state
from polarlight.view import Whole


def new_state(group: Group, p: Tensor, name: str) -> dict[str, Tensor]:
    """The state of a parameter before its first step."""
    rule = group["rule"]
    if not isinstance(rule, UpdateRule):
        return dict(rule.new_state(p))
    return new_buffers_of(rule, group["view"] or Whole(), p, name) | momentum_state(
        rule.momentum, p
    )


def gradients(group: Group, params: list[Tensor]) -> list[Tensor]:
    """What of the gradients lies here, in the direction in which the loss grows or falls."""
    found = [gradient_of(p) for p in params]
    return list(torch._foreach_neg(found)) if group["maximize"] else found


def move(
    params: list[Tensor],
    directions: list[Tensor],
    lr: float | Tensor,
    weight_decay: float,
    finite: Finite,
) -> None:
    """W <- (1 - lr weight_decay) W - lr direction; weights that are left out do not decay."""
    lr = lr.reshape(()) if isinstance(lr, Tensor) else lr
    if weight_decay != 0:
        nonfinite.decay(params, 1 - lr * weight_decay, finite)
    if isinstance(lr, Tensor):
        wide = [D.to(p.dtype) for D, p in zip(directions, params, strict=True)]
        torch._foreach_sub_(params, torch._foreach_mul(wide, lr))
    else:
        torch._foreach_add_(params, directions, alpha=-lr)
