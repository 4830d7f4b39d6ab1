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

from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from enum import StrEnum
from typing import Any, TypeGuard

import torch
from torch import Tensor

from polarlight import finiteness
from polarlight.execution.work import is_sharded
from polarlight.groups import Group, name_of
from polarlight.rule import (
    HOST_COUNTER,
    MOMENTUM,
    ElementwiseRule,
    Momentum,
    Remembering,
    SkippingRule,
    UpdateRule,
    bound,
)

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


class Watch:
    """Judges the gradients of a step and keeps count of those that were left out.

    Attributes:
        policy: What is done about them; may be changed at any time.
    """

    def __init__(self, policy: NonFinite) -> None:
        self.policy = policy
        self._seen: Counter[tuple[int, int]] = Counter()
        self._counts: dict[tuple[int, torch.device], Tensor] = {}

    def prepare(self, groups: Sequence[Group]) -> None:
        """Makes the counts on every device, so that a step in a graph finds them there."""
        for index, group in enumerate(groups):
            for device in {p.device for p in group["params"]}:
                self._counts_on(index, device, len(group["params"]))

    def judge(
        self,
        groups: Sequence[Group],
        members: Mapping[int, list[int]],
        states: Mapping[Tensor, State],
        ask: bool,
    ) -> dict[int, Verdict]:
        """One verdict per group; takes out of `members` what the host knows to be left out.

        Args:
            groups: The param groups.
            members: Per group, the places of the parameters with a gradient.
            states: The state of each parameter.
            ask: Whether the host may wait for a transfer per group, for it is watching.

        Raises:
            FloatingPointError: If the policy is RAISE and a gradient is not finite.
        """
        if self.policy is NonFinite.PROPAGATE:
            return dict.fromkeys(members)
        elsewhere = finiteness.bad_everywhere(groups, members)
        if self.policy is NonFinite.RAISE:
            _refuse(groups, members, elsewhere)
            return dict.fromkeys(members)
        for index, places in members.items():
            self._remove(index, places, _of(elsewhere, index))
        return {
            index: self._skip(
                index, groups[index], places, ask or _counts_on_host(groups[index], places, states)
            )
            for index, places in members.items()
        }

    def skipped(self, groups: Sequence[Group]) -> dict[str, int]:
        """How many steps each parameter was left out of, by name; those with none are absent."""
        found = Counter(self._seen)
        for (index, _), counts in self._counts.items():
            found.update({(index, place): n for place, n in enumerate(counts.tolist()) if n})
        names: Counter[str] = Counter()
        for (i, place), n in sorted(found.items()):
            if i < len(groups) and place < len(groups[i]["params"]):  # unless it was taken out
                names[name_of(groups[i], i, place)] += n
        return dict(names)

    def _skip(self, index: int, group: Group, places: list[int], ask: bool) -> Verdict:
        """Flags for the places that are left, or None if the host knows that all are finite."""
        finite: dict[int, Tensor] = {}
        squares = not isinstance(group["rule"], UpdateRule)
        plain = [i for i in places if not is_sharded(group["params"][i])]
        for device, here, gradients in finiteness.by_device(group["params"], plain):
            if ask or finiteness.in_memory(device):
                known = finiteness.known_finite(gradients, squares)
                self._remove(
                    index, places, [i for i, ok in zip(here, known, strict=True) if not ok]
                )
            else:
                flags = finiteness.are_finite(gradients, squares)
                self._count(index, len(group["params"]), here, flags)
                finite.update(zip(here, flags.unbind(), strict=True))
        return finite or None

    def _remove(self, index: int, places: list[int], bad: Sequence[int]) -> None:
        """Takes the places that are known not to be finite out, and counts them."""
        for place in bad:
            self._seen[index, place] += 1
            places.remove(place)

    def _count(self, index: int, size: int, here: Sequence[int], flags: Tensor) -> None:
        """Adds to the counts of one group on one device."""
        counts, bad = self._counts_on(index, flags.device, size), flags.logical_not()
        if len(here) == size:
            counts += bad
        else:
            for place, one in zip(here, bad.unbind(), strict=True):
                counts[place] += one

    def _counts_on(self, index: int, device: torch.device, size: int) -> Tensor:
        """The counts of one group on one device, int64 [size]."""
        key = (index, device)
        if key not in self._counts or len(self._counts[key]) != size:
            self._counts[key] = torch.zeros(size, dtype=torch.int64, device=device)
        return self._counts[key]


def verdict_of(verdict: Verdict, places: Sequence[int]) -> Finite:
    """The flags of some places, one beside each gradient."""
    if verdict is None:
        return None
    return [verdict.get(i, torch.ones((), dtype=torch.bool)) for i in places]


def _refuse(
    groups: Sequence[Group], members: Mapping[int, Sequence[int]], elsewhere: set[finiteness.Place]
) -> None:
    """Raises FloatingPointError if a gradient is not finite."""
    bad = [
        name_of(groups[index], index, place)
        for index, places in members.items()
        for place in sorted({*finiteness.known_bad(groups[index], places), *_of(elsewhere, index)})
    ]
    if bad:
        raise FloatingPointError(
            f"the gradient of {', '.join(bad)} is not finite; nothing was changed. "
            "NonFinite.SKIP leaves such parameters out of the step"
        )


def _of(places: set[finiteness.Place], index: int) -> list[int]:
    """Those in one group."""
    return sorted(place for group, place in places if group == index)


def _counts_on_host(group: Group, places: Sequence[int], states: Mapping[Tensor, State]) -> bool:
    """Whether the group's rule branches on a counter of its own."""
    return isinstance(group["rule"], UpdateRule) and any(
        HOST_COUNTER in states[group["params"][i]] for i in places
    )


def momenta(
    momentum: Momentum,
    states: Sequence[Mapping[str, Tensor]],
    gradients: Sequence[Tensor],
    buffers: Sequence[Tensor],
    beta: float,
    finite: Finite,
) -> list[Tensor]:
    """What the rule maps; buffers of parameters that are left out keep their value.

    An average is at rest where the gradient equals it: that is what it is given there. Other
    conventions are undone, and what the momentum keeps beside its buffers too.
    """
    average = bound(momentum, states)
    if finite is None:
        return average(gradients, buffers, beta)
    beside = momentum.beside if isinstance(momentum, Remembering) else ()
    written = [[state[name] for name in beside] for state in states]
    if momentum.buffered and not momentum.averages:
        written = [[b, *tensors] for b, tensors in zip(buffers, written, strict=True)]
    before = [[x.clone() for x in tensors] for tensors in written]
    rest = buffers if momentum.buffered else [g.new_zeros(()) for g in gradients]
    harmless = [torch.where(ok, g, r) for ok, g, r in zip(finite, gradients, rest, strict=True)]
    result = average(harmless, buffers, beta)
    for ok, new, old in zip(finite, written, before, strict=True):
        _undo(new, old, [ok] * len(new))
    return result


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
            state[name].copy_(torch.where(ok, value, state[name]))
    for ok, direction in zip(finite, directions, strict=True):
        direction.mul_(ok)


def decay(params: Sequence[Tensor], factor: float | Tensor, finite: Finite) -> None:
    """Multiplies the weights by the factor, but not those that are left out."""
    if finite is None:
        torch._foreach_mul_(list(params), factor)
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
    elif _skips(rule, parameters):
        rule.step_finite(parameters, gradients, states, finite, **numbers)
    else:
        written = [[p, *state.values()] for p, state in zip(parameters, states, strict=True)]
        before = [[x.clone() for x in tensors] for tensors in written]
        rule.step(parameters, gradients, states, **numbers)
        for ok, tensors, old in zip(finite, written, before, strict=True):
            _undo(tensors, old, [ok.to(x.device) for x in tensors])


def _skips(rule: ElementwiseRule, parameters: Sequence[Tensor]) -> TypeGuard[SkippingRule]:
    """Whether the rule can leave parameters out: a graph does not hold the kernels that do so."""
    here = {p.device.type for p in parameters} <= _SKIPPING
    return here and isinstance(rule, SkippingRule) and not torch.compiler.is_compiling()


def _undo(written: Sequence[Tensor], before: Sequence[Tensor], finite: Sequence[Tensor]) -> None:
    for new, old, ok in zip(written, before, finite, strict=True):
        new.copy_(torch.where(ok, new, old))
