"""Gradients of parameters that processes hold together: compared, reduced, tested before a step."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from polarlight.execution.job import Executor
from polarlight.execution.param_task import ParamExecutor, Trainable
from polarlight.execution.sharded.agreement import Agreed, Agreement, Finite, nonfinite_members
from polarlight.execution.sharded.collectives import redistributed
from polarlight.execution.sharded.executor import Sharded
from polarlight.optimizer.gradient_guard import NonFinite, finite_of
from polarlight.optimizer.masked import State
from polarlight.optimizer.param_groups import Group, name_of
from polarlight.rule import UpdateRule
from polarlight.view import Whole

Pair = tuple[int, int]
"""Group index and param index."""


class SharedGradients:
    """Agreement of processes on the gradients of shared parameters, made before a step."""

    def __init__(self) -> None:
        self._agreement = Agreement()

    @contextmanager
    def prepared(
        self,
        groups: Sequence[Group],
        active: Mapping[int, list[int]],
        states: Mapping[Tensor, State],
        shared: Sequence[Collection[int]],
        executor: Executor | ParamExecutor,
        policy: NonFinite,
    ) -> Iterator[set[Pair]]:
        """Agree on gradients with all processes; yield (group, param) of the non-finite ones.

        While the context lasts, `p.grad` of a pending gradient is the reduced one, and a missing
        gradient that counts as zero is zero; afterwards every `p.grad` is what it was.

        Args:
            groups: The param groups.
            active: Param indices with a gradient, by group; missing ones are added.
            states: State of each trainable parameter.
            shared: Param indices of shared parameters, by group.
            executor: The executor, with the process group of plain parameters.
            policy: What to do about a non-finite gradient.

        Raises:
            ValueError: On all processes, if they disagree on parameters or gradients.
        """
        pairs = [
            (i, k) for i, own in enumerate(shared) for k in own if groups[i]["params"][k] in states
        ]
        members = [_trainable(groups[i], i, k, states) for i, k in sorted(pairs)]
        pairs.sort()

        def finite(numbers: Sequence[int]) -> Tensor:
            if policy is NonFinite.PROPAGATE:
                device = members[numbers[0]].parameter.device  # no copy from the host
                return torch.ones(len(numbers), dtype=torch.bool, device=device)
            return finite_of(groups, [pairs[n] for n in numbers])

        agreed = self._agreed(members, executor, finite)
        replaced = [members[n].parameter for n in (*agreed.missing, *agreed.pending)]
        before = [(p, p.grad) for p in replaced]
        try:
            for n in agreed.missing:
                i, k = pairs[n]
                members[n].parameter.grad = torch.zeros_like(members[n].parameter)
                active[i].append(k)
                active[i].sort()
            for n in agreed.pending:
                members[n].parameter.grad = redistributed(members[n].parameter)
            nonfinite = agreed.nonfinite | _nonfinite_pending(agreed, finite)
            yield {pairs[n] for n in nonfinite}
        finally:
            for p, gradient in before:
                p.grad = gradient

    def _agreed(
        self, members: Sequence[Trainable], executor: Executor | ParamExecutor, finite: Finite
    ) -> Agreed:
        """Compare trainable parameters on all processes, and announce them to the executor."""
        if not isinstance(executor, Sharded):
            return self._agreement.check(members, None, finite, options="", missing_is_zero=False)
        executor.announce([m for m in members if isinstance(m.rule, UpdateRule)])
        return self._agreement.check(
            members,
            executor.group,
            finite,
            options=f"{executor.options}, missing_gradients={executor.missing_gradients!r}",
            missing_is_zero=executor.missing_gradients == "zero",
        )


def _trainable(group: Group, i: int, k: int, states: Mapping[Tensor, State]) -> Trainable:
    """Return a group's parameter as a `Trainable`, for the comparison of processes."""
    p = group["params"][k]
    return Trainable(name_of(group, i, k), group["rule"], group["view"] or Whole(), p, states[p])


def _nonfinite_pending(agreed: Agreed, finite: Finite) -> set[int]:
    """Return members whose gradient is not finite on some process after it was reduced."""
    found: set[int] = set()
    for roster in agreed.rosters:
        pending = [n for n in roster.members if n in agreed.pending]
        if pending:
            found |= nonfinite_members(roster, pending, finite)
    return found
