"""What a step does about a gradient with a NaN or an Inf in it.

By default that parameter is left out of the step, weight and all of its state, as if it had had no
gradient. Where the gradient lies on an accelerator, or the step is compiled, nobody waits to learn
which ones these are: what the step writes is selected on the device, and counted there. The host is
asked where it need not wait (gradients in its own memory) and where it decides anyway: `RAISE`,
rules with a counter on the host (`HOST_COUNTER`: SOAP and its kin), and steps that a probe
observes. That is one transfer per group.

AdamW squares its gradients: for elementwise rules a gradient whose sum of squares overflows (norms
beyond 1.8e19 in float32) is not finite either. One such step would leave an infinite second moment,
and a parameter that never moves again.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from polarlight.linalg import foreach
from polarlight.rule import MOMENTUM, ElementwiseRule, Momentum

Finite = list[Tensor] | None
"""One bool [] per gradient, beside it; None where every gradient is to be used as it is."""

Verdict = Mapping[int, Tensor] | None
"""The same by place in the group; places that are known to be finite are absent."""

State = dict[str, Tensor]


class NonFinite(StrEnum):
    """What to do about a gradient that is not finite."""

    SKIP = "skip"
    """Leave its parameter out of this step and count it; the others move. The default."""
    RAISE = "raise"
    """Raise FloatingPointError, naming them, before anything has moved. Waits for the device."""
    PROPAGATE = "propagate"
    """Use it: its own parameter and state become NaN, the others are untouched."""


def verdict_of(verdict: Verdict, places: Sequence[int]) -> Finite:
    """The flags of some places, one beside each gradient."""
    if verdict is None:
        return None
    return [verdict.get(i, torch.ones((), dtype=torch.bool)) for i in places]


def momenta(
    momentum: Momentum,
    states: Sequence[Mapping[str, Tensor]],
    gradients: Sequence[Tensor],
    buffers: Sequence[Tensor],
    beta: float | Tensor,
    finite: Finite,
) -> list[Tensor]:
    """What the rule maps; buffers of parameters that are left out keep their value.

    An average is at rest where the gradient equals it: that is what it is given there. Other
    conventions are undone, and what the momentum keeps beside its buffers too.
    """
    average = momentum.bind_state(states)
    if finite is None:
        return average(gradients, buffers, beta)
    extra = momentum.extra_state
    written = [[state[name] for name in extra] for state in states]
    if momentum.buffered and not momentum.is_ema:
        written = [[b, *tensors] for b, tensors in zip(buffers, written, strict=True)]
    before = [[x.clone() for x in tensors] for tensors in written]
    rest = (
        buffers
        if momentum.buffered
        else [torch.zeros((), dtype=g.dtype, device=g.device) for g in gradients]
    )
    harmless = [torch.where(ok, g, r) for ok, g, r in zip(finite, gradients, rest, strict=True)]
    result = average(harmless, buffers, beta)
    for ok, new, old in zip(finite, written, before, strict=True):
        _undo(new, old, [ok] * len(new))
    if not momentum.buffered:
        return result
    # A direction that is left out becomes zero: it may be what the rule was given.
    return [M.clone() if M is b else M for M, b in zip(result, buffers, strict=True)]


def drafts(states: Sequence[State], finite: Finite) -> Sequence[State]:
    """Copies of the stages' buffers for a step to write; the states themselves if all is kept."""
    if finite is None:
        return states
    return [
        {name: value.clone() for name, value in state.items() if name != MOMENTUM}
        for state in states
    ]


def keep(
    directions: Sequence[Tensor],
    states: Sequence[MutableMapping[str, Tensor]],
    written: Sequence[State],
    finite: Finite,
) -> None:
    """Takes the drafts over and makes directions zero where the gradient was not finite."""
    if finite is None:
        return
    for ok, state, draft in zip(finite, states, written, strict=True):
        for name, value in draft.items():
            state[name].copy_(torch.where(ok.to(value.device), value, state[name]))
    for ok, direction in zip(finite, directions, strict=True):
        direction.mul_(ok)


def decay(params: Sequence[Tensor], factor: float | Tensor, finite: Finite) -> None:
    """Multiplies the weights by the factor, but not those that are left out."""
    if finite is None:
        foreach.mul_(params, factor)
        return
    for ok, p in zip(finite, params, strict=True):
        p.copy_(torch.where(ok, p * factor, p))


_SKIPPING = {"cpu", "cuda", "meta"}
"""Devices on which torch's kernels can leave a parameter out by themselves."""


def step_entries(
    rule: ElementwiseRule,
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: list[State],
    finite: Finite,
    **numbers: Any,
) -> None:
    """A step of an elementwise rule; what is left out keeps weight and state.

    Rules that can leave parameters out do so; the work of others is undone.
    """
    if finite is None:
        rule.step(parameters, gradients, states, **numbers)
    elif _leaves_out(rule, parameters):
        rule.step_finite(parameters, gradients, states, finite, **numbers)
    else:
        written = [[p, *state.values()] for p, state in zip(parameters, states, strict=True)]
        before = [[x.clone() for x in tensors] for tensors in written]
        rule.step(parameters, gradients, states, **numbers)
        for ok, tensors, old in zip(finite, written, before, strict=True):
            _undo(tensors, old, [ok.to(x.device) for x in tensors])


def _leaves_out(rule: ElementwiseRule, parameters: Sequence[Tensor]) -> bool:
    """Return whether the rule's own kernel can leave parameters out; a graph does not hold it."""
    here = {p.device.type for p in parameters} <= _SKIPPING and foreach.have_kernels(parameters)
    return here and rule.has_step_finite and not torch.compiler.is_compiling()


def _undo(written: Sequence[Tensor], before: Sequence[Tensor], finite: Sequence[Tensor]) -> None:
    for new, old, ok in zip(written, before, finite, strict=True):
        new.copy_(torch.where(ok, new, old))
