"""Gradients of parameters that processes hold together: compared, reduced, tested before a step."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from polarlight.execution.job import Executor
from polarlight.execution.param_task import ParamExecutor, ParamWithState
from polarlight.execution.sharded.agreement import (
    Agreement,
    FiniteMaskOf,
    GradientStatus,
    Roster,
    nonfinite_members,
)
from polarlight.execution.sharded.collectives import redistributed_gradient
from polarlight.execution.sharded.executor import Sharded
from polarlight.execution.sharded.faults import SharedStep
from polarlight.optimizer.gradient_guard import NonFinite, any_nonfinite, finite_of
from polarlight.optimizer.masked import State
from polarlight.optimizer.param_groups import Group, names_of
from polarlight.rule import UpdateRule
from polarlight.view import Whole

IndexPair = tuple[int, int]
"""Group index and param index of a parameter."""

_WHOLE = Whole()
"""View of groups that have none: one object, which is compared sooner."""


class SharedGradients:
    """Agreement of processes on the gradients of shared parameters, made before a step.

    Attributes:
        step: The present step, or the last one.
    """

    def __init__(self) -> None:
        """Start with nothing compared yet; `step` is a `SharedStep` that has not begun."""
        self._agreement = Agreement()
        self._matrices: list[ParamWithState] = []
        self._rosters: list[Roster] = []
        self.step = SharedStep(self._agreement.ranks)

    @contextmanager
    def prepared(
        self,
        groups: Sequence[Group],
        active: Mapping[int, list[int]],
        states: Mapping[Tensor, State],
        shared: Sequence[Collection[int]],
        executor: Executor | ParamExecutor,
        policy: NonFinite,
    ) -> Iterator[dict[IndexPair, int]]:
        """Compare and reduce shared gradients; yield {(group, param): rank} of non-finite ones.

        Each comes with the rank of a process that found it. An error in the context is reported to
        the other processes (`execution/sharded/faults.py`). While it lasts, `p.grad` of a pending
        gradient is the reduced one, and a missing gradient that counts as zero is zero; afterwards
        every `p.grad` is what it was.

        Args:
            groups: The param groups.
            active: Param indices with a gradient, by group; missing ones are added.
            states: State of each trainable parameter.
            shared: Param indices of shared parameters, by group.
            executor: The executor, with the process group of plain parameters.
            policy: What to do about a non-finite gradient.

        Raises:
            ValueError: On all processes, if they disagree on parameters or gradients.
            FloatingPointError: On all processes, if `policy` is RAISE and a gradient on another one
                is not finite.
            RuntimeError: If another process is gone, or a step failed before.
        """
        pairs, members = _shared_params(groups, states, shared)

        def finite(numbers: Sequence[int]) -> Tensor:
            """Return bool [n], True for members with finite gradients; all True if PROPAGATE."""
            if policy is NonFinite.PROPAGATE:
                device = members[numbers[0]].parameter.device  # no copy from the host
                return torch.ones(len(numbers), dtype=torch.bool, device=device)
            return finite_of(groups, [pairs[n] for n in numbers])

        raises = policy is NonFinite.RAISE
        unshared_nonfinite = raises and any_nonfinite(groups, active, shared)
        with SharedStep(self._agreement.ranks) as self.step:
            agreed = self._compare(members, executor, finite, raises, unshared_nonfinite)
            self.step.agreed = True
            with _gradients_replaced(agreed, members, pairs, active):
                nonfinite = agreed.nonfinite | _nonfinite_pending(agreed, finite)
                if agreed.raise_for_rank is not None and not nonfinite and not unshared_nonfinite:
                    raise FloatingPointError(
                        f"a gradient on rank {agreed.raise_for_rank} is not finite; nothing was "
                        "changed. That process names its parameter. NonFinite.SKIP leaves such "
                        "parameters out of the step"
                    )
                yield {pairs[n]: rank for n, rank in nonfinite.items()}

    def _compare(
        self,
        members: Sequence[ParamWithState],
        executor: Executor | ParamExecutor,
        finite: FiniteMaskOf,
        raises: bool,
        unshared_nonfinite: bool,
    ) -> GradientStatus:
        """Compare `members` on all processes; return findings; tell `Sharded` the matrices."""
        group, options, zero = None, "", False
        if isinstance(executor, Sharded):
            options = f"{executor.options}, missing_gradients={executor.missing_gradients!r}"
            group, zero = executor.group, executor.missing_gradients == "zero"
        agreed = self._agreement.check(
            members,
            group,
            finite,
            options=options,
            missing_is_zero=zero,
            nonfinite_raises=raises,
            unshared_nonfinite=unshared_nonfinite,
        )
        if isinstance(executor, Sharded):
            # The same list as in the step before tells that nothing has changed.
            matrices = [m for m in members if isinstance(m.rule, UpdateRule)]
            same = agreed.rosters is self._rosters and all(
                [m.state is old.state for m, old in zip(matrices, self._matrices, strict=True)]
            )
            if not same:
                self._matrices, self._rosters = matrices, agreed.rosters
            executor.announce(self._matrices)
        return agreed


@contextmanager
def _gradients_replaced(
    agreed: GradientStatus,
    members: Sequence[ParamWithState],
    pairs: Sequence[IndexPair],
    active: Mapping[int, list[int]],
) -> Iterator[None]:
    """Replace pending and missing `p.grad` in the context; make missing ones active; undo on exit.

    A pending gradient has other placements than its parameter: it is redistributed. A missing one
    is zero. Afterwards each `p.grad` is what it was.

    Args:
        agreed: Numbers of members with a missing or pending gradient.
        members: The parameters that processes share.
        pairs: Group index and param index of each member.
        active: Param indices with a gradient, by group; changed in place.
    """
    replaced = [members[n].parameter for n in (*agreed.missing, *agreed.pending)]
    before = [(p, p.grad) for p in replaced]
    try:
        for n in agreed.missing:
            i, k = pairs[n]
            members[n].parameter.grad = torch.zeros_like(members[n].parameter)
            active[i].append(k)
            active[i].sort()
        for n in agreed.pending:
            members[n].parameter.grad = redistributed_gradient(members[n].parameter)
        yield
    finally:
        for p, gradient in before:
            p.grad = gradient


def _shared_params(
    groups: Sequence[Group], states: Mapping[Tensor, State], shared: Sequence[Collection[int]]
) -> tuple[list[IndexPair], list[ParamWithState]]:
    """Return (group, param) index pairs of the shared parameters with a state, and these params."""
    pairs, members = [], []
    for i, (group, own) in enumerate(zip(groups, shared, strict=True)):
        if not own:
            continue
        rule, view, params = group["rule"], group["view"] or _WHOLE, group["params"]
        names = names_of(group, i)
        for k in sorted(own):
            p = params[k]
            if (state := states.get(p)) is not None:
                pairs.append((i, k))
                members.append(ParamWithState(names[k], rule, view, p, state))
    return pairs, members


def _nonfinite_pending(agreed: GradientStatus, finite: FiniteMaskOf) -> dict[int, int]:
    """Return {member index: rank that found its pending gradient non-finite}; all-reduces."""
    found: dict[int, int] = {}
    for roster in agreed.rosters:
        pending = [n for n in roster.members if n in agreed.pending]
        if pending:
            found |= nonfinite_members(roster, pending, finite)
    return found
