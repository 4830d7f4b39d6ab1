"""Step of shared parameters whose directions are applied one after the other, as they come."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeGuard

from torch import Tensor

from polarlight.execution.param_task import (
    ParamTask,
    ParamWithState,
    StreamedParams,
    shared_indices,
    to_local,
)
from polarlight.execution.sharded.executor import Sharded
from polarlight.optimizer.apply import apply_update
from polarlight.optimizer.masked import AlikeTasks, FiniteFlags, State
from polarlight.optimizer.param_groups import ActiveParams, Group, alike_groups, name_of
from polarlight.optimizer.shared_gradients import IndexPair
from polarlight.view import Whole


def is_streaming(executor: object) -> TypeGuard[Sharded]:
    """Return whether the executor is `Sharded` and applies each direction once it is complete."""
    return isinstance(executor, Sharded) and not executor.weights_last


def step_streamed(
    executor: Sharded,
    groups: Sequence[Group],
    batch: ActiveParams,
    states: Mapping[Tensor, State],
    update_momenta: Callable[[Sequence[IndexPair], Mapping[int, FiniteFlags], bool], AlikeTasks],
) -> ActiveParams:
    """Step groups whose params are all shared, each param when complete; return the other groups.

    Args:
        executor: The executor.
        groups: The param groups.
        batch: Active parameters with rules on matrices, of which shared ones have finite gradients.
        states: State of each parameter.
        update_momenta: Updates momenta of parameters whose groups are alike, given their flags
            (None) and whether a probe reads the momenta later; returns their tasks.

    Returns:
        Groups that have a parameter which no other process shares; they were not stepped.
    """
    shared = shared_indices([group["params"] for group in groups], executor)
    own = {i: ks for i, ks in batch.items() if not set(ks) <= shared[i]}
    places = [(i, k) for i, ks in batch.items() if i not in own for k in ks]
    params = [groups[i]["params"][k] for i, k in places]
    members = [
        ParamWithState(
            name_of(groups[i], i, k), groups[i]["rule"], groups[i]["view"] or Whole(), p, s
        )
        for (i, k), p, s in zip(places, params, [states[p] for p in params], strict=True)
    ]

    def by_alike_groups(positions: Sequence[int]) -> list[list[int]]:
        """Return lists of positions in `members` whose groups have equal rule, view and numbers."""
        by_group: dict[int, list[int]] = {}
        for n in positions:
            by_group.setdefault(places[n][0], []).append(n)
        return [[n for i in alike for n in by_group[i]] for alike in alike_groups(groups, by_group)]

    def load(positions: Sequence[int]) -> list[ParamTask]:
        """Update momenta in place for these positions in `members`; return their tasks."""
        found: dict[int, ParamTask] = {}
        for some in by_alike_groups(positions):
            finite: dict[int, FiniteFlags] = {places[n][0]: None for n in some}
            tasks = update_momenta([places[n] for n in some], finite, False).tasks
            found.update(zip(some, tasks, strict=True))
        return [found[n] for n in positions]

    def store(positions: Sequence[int], directions: Sequence[Tensor]) -> None:
        """Apply directions, in place, to the weights at these positions in `members`."""
        by_position = dict(zip(positions, directions, strict=True))
        for some in by_alike_groups(positions):
            weights = [to_local(params[n]) for n in some]
            own, D = [members[n].state for n in some], [by_position[n] for n in some]
            apply_update(groups[places[some[0]][0]], weights, own, D, None)

    executor.stream(StreamedParams(members, load, store))
    return own
