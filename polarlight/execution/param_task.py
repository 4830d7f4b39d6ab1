"""Request for one parameter's direction, and the local part of tensors that may be DTensors.

Elementwise work runs on the local part: the tensor itself on one device, the shard of a DTensor.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Parameter

from polarlight.execution.job import BufferShapes, Executor, job_of_whole, jobs_of, new_buffers
from polarlight.execution.sharded import collectives
from polarlight.linalg import foreach
from polarlight.rule import MOMENTUM, Rule, UpdateRule
from polarlight.view import MatrixView, Whole


class Member(Protocol):
    """Interface of one parameter, for comparison between processes and for plans."""

    @property
    def name(self) -> str:
        """Name of the parameter, for messages."""

    @property
    def rule(self) -> Rule:
        """Rule of the parameter."""

    @property
    def view(self) -> MatrixView:
        """View that splits the parameter into matrices."""

    @property
    def parameter(self) -> Tensor:
        """Parameter; a DTensor carries mesh and placements."""

    @property
    def state(self) -> dict[str, Tensor]:
        """Buffers by name; DTensors if the parameter is one."""


@dataclass(slots=True)  # not frozen: one is made for every parameter in every step
class ParamWithState:
    """Trainable parameter with its rule, view and buffers; attributes as in `Member`."""

    name: str
    rule: Rule
    view: MatrixView
    parameter: Tensor
    state: dict[str, Tensor]


@dataclass(slots=True)
class ParamTask:
    """Request for the direction of one parameter.

    Attributes:
        name: The parameter's name, for messages.
        rule: The update rule of its matrices.
        view: The view that splits the parameter into matrices.
        parameter: The parameter; a DTensor carries mesh and placements.
        momentum: Local part of what the rule maps.
        state: Buffers by name, and the gradient under `GRADIENT` if the rule reads it; DTensors if
            the parameter is one.
        expendable: Whether the direction may be written over the momentum.
    """

    name: str
    rule: UpdateRule
    view: MatrixView
    parameter: Tensor
    momentum: Tensor
    state: dict[str, Tensor]
    expendable: bool = False


@runtime_checkable
class ParamExecutor(Protocol):
    """Executor that takes whole parameters instead of matrices, all of a step in one call."""

    def directions_of(self, tasks: Sequence[ParamTask]) -> list[Tensor]:
        """Return the local part of one direction per task; update the rules' buffers in place."""


def directions_of(executor: Executor | ParamExecutor, tasks: Sequence[ParamTask]) -> list[Tensor]:
    """Return one direction per task, in its momentum's shape; rules' buffers change in place."""
    if isinstance(executor, ParamExecutor):
        return executor.directions_of(tasks)
    known: BufferShapes = {}
    momenta = foreach.all_plain([t.momentum for t in tasks])
    if all([type(t.view) is Whole for t in tasks]):  # most often, and soonest done
        every = zip(tasks, momenta, strict=True)
        return executor.directions([job_of_whole(t.rule, M, t.state, known) for t, M in every])
    jobs = [jobs_of(t.rule, t.view, M, t.state, known) for t, M in zip(tasks, momenta, strict=True)]
    results = iter(executor.directions([job for of_param in jobs for job in of_param]))
    return [
        t.view.join(list(islice(results, len(of_param))))
        for t, of_param in zip(tasks, jobs, strict=True)
    ]


_PLAIN = (Tensor, Parameter)
"""Types that are no DTensor, tested first: the question comes many times per step."""

_DTENSORS: set[type] = set()
"""Types that were found to be DTensors."""


def is_sharded(x: Tensor) -> bool:
    """Return whether x is a DTensor, without importing `torch.distributed.tensor`."""
    if type(x) in _PLAIN:
        return False
    if type(x) in _DTENSORS:
        return True
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or not isinstance(x, module.DTensor):
        return False
    _DTENSORS.add(type(x))
    return True


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Return whether one of the tensors is a DTensor."""
    tensors = list(tensors)
    if set(map(type, tensors)) <= {*_PLAIN}:  # many tensors per step: no loop in Python
        return False
    return any(map(is_sharded, tensors))


def shared_indices(
    param_lists: Sequence[Sequence[Tensor]], executor: Executor | ParamExecutor
) -> list[set[int]]:
    """Return, per list, the indices of DTensors, or of all parameters if `executor.group` is set.

    Processes share these parameters: a `group` of processes has equal plain parameters.
    """
    if getattr(executor, "group", None) is not None:
        return [set(range(len(params))) for params in param_lists]
    return [
        {k for k, p in enumerate(params) if is_sharded(p)} if any_sharded(params) else set()
        for params in param_lists
    ]


def to_local(x: Tensor) -> Tensor:
    """Return the shard of a DTensor, sharing its memory; any other tensor unchanged."""
    if type(x) in _DTENSORS or is_sharded(x):
        sharded: Any = x  # without gradients `to_local` returns the attribute, and takes longer
        shard: Tensor = sharded.to_local() if torch.is_grad_enabled() else sharded._local_tensor
        return shard
    return x


def all_to_local(tensors: Iterable[Any]) -> list[Tensor]:
    """Return, per tensor, the shard of a DTensor or the plain tensor itself."""
    if torch.is_grad_enabled():
        return [to_local(x) for x in tensors]
    return [x._local_tensor if type(x) in _DTENSORS else to_local(x) for x in tensors]


def mark_expendable(tasks: Iterable[ParamTask], kept: Iterable[Iterable[Tensor]]) -> None:
    """Set each task's `expendable`: True if its momentum shares no storage with `kept` tensors."""
    # Storages themselves, not their addresses, which fake tensors have none of.
    taken = {x.untyped_storage()._cdata for tensors in kept for x in tensors}
    for task in tasks:
        task.expendable = task.momentum.untyped_storage()._cdata not in taken


def full_tensor(x: Tensor, parameter: Tensor | None = None) -> Tensor:
    """All-gather a DTensor x, or a shard x of DTensor `parameter`, to the full tensor; else x."""
    if parameter is not None:
        x = placed_like(x, parameter)
    return x.full_tensor() if is_sharded(x) else x  # type: ignore[attr-defined]


def placed_like(x: Tensor, parameter: Tensor) -> Tensor:
    """Return shard x as a DTensor placed like `parameter`; x itself if `parameter` is plain."""
    return collectives.as_dtensor_like(x, parameter) if is_sharded(parameter) else x


def local_gradient(parameter: Tensor) -> Tensor:
    """Return `.grad` (not None) in the parameter's placements, local; may be a collective."""
    gradient = parameter.grad
    assert gradient is not None
    return (
        to_local(collectives.redistributed_gradient(parameter))
        if is_sharded(parameter)
        else gradient
    )


def local_tensors(
    params: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]], *, maximize: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return local weights, gradients not None (negated if `maximize`), and existing momenta.

    Gradients of DTensors must have their parameters' placements.
    """
    weights, buffers = list(params), [state[MOMENTUM] for state in states if MOMENTUM in state]
    gradients = [g for g in [p.grad for p in params] if g is not None]
    if any_sharded(params):
        weights, gradients, buffers = map(all_to_local, (params, gradients, buffers))
    return weights, foreach.neg(gradients) if maximize else gradients, buffers


def new_param_buffers(
    rule: UpdateRule, view: MatrixView, parameter: Tensor, param_name: str
) -> dict[str, Tensor]:
    """Return {name: zeros} for a rule's stages, without the momentum; DTensors for a DTensor.

    Raises:
        ValueError: If a placement of the parameter is neither `Shard` nor `Replicate`.
    """
    if not is_sharded(parameter):
        return new_buffers(rule, view, parameter)
    collectives.layout_of(parameter, param_name)  # refuses a placement before anything is allocated
    return new_buffers(
        rule, view, parameter, partial(collectives.sharded_zeros, parameter, param_name)
    )


class ParamSource(Protocol):
    """Interface of a source of tasks that takes directions; parameters by number in the plan."""

    @property
    def numbers(self) -> Collection[int]:
        """Numbers of all parameters of the step, as in its plan."""

    def parameter(self, number: int) -> Tensor:
        """Return the parameter of this number in the plan."""

    def load(self, numbers: Sequence[int]) -> list[ParamTask]:
        """Return one task per number; updates its momentum, so that each is loaded once."""

    def store(self, numbers: Sequence[int], directions: Sequence[Tensor]) -> None:
        """Take the parameters' directions, each in the shape of its local shard."""


class LoadedTasks:
    """Source of tasks that exist already; keeps all directions until the end of the step.

    Attributes:
        tasks: Tasks by number.
        directions: Directions that were stored, by number.
    """

    def __init__(self, tasks: Mapping[int, ParamTask]) -> None:
        """Keep the tasks; no direction is stored yet."""
        self.tasks = tasks
        self.directions: dict[int, Tensor] = {}

    @property
    def numbers(self) -> Collection[int]:
        """Numbers of all tasks."""
        return self.tasks.keys()

    def parameter(self, number: int) -> Tensor:
        """Return the parameter of this number in the plan."""
        return self.tasks[number].parameter

    def load(self, numbers: Sequence[int]) -> list[ParamTask]:
        """Return the tasks of these numbers, in order."""
        return [self.tasks[n] for n in numbers]

    def store(self, numbers: Sequence[int], directions: Sequence[Tensor]) -> None:
        """Add directions to `self.directions`, by number."""
        self.directions.update(zip(numbers, directions, strict=True))


class StreamedParams:
    """Source of tasks that updates momenta when they are loaded, weights when directions come.

    Args:
        members: The parameters.
        load: Positions in `members` -> tasks; updates their momenta.
        store: Takes positions and directions, and moves weights.
    """

    def __init__(
        self,
        members: Sequence[Member],
        load: Callable[[Sequence[int]], list[ParamTask]],
        store: Callable[[Sequence[int], Sequence[Tensor]], None],
    ) -> None:
        """Keep the arguments; nothing is loaded yet."""
        self.members, self._load, self._store = members, load, store
        self._early: dict[int, ParamTask] = {}
        self._positions: Mapping[int, int] = {}

    def momentum_dtypes(self, positions: Sequence[int]) -> list[torch.dtype]:
        """Load members (updates their momenta), keep the tasks; return the momenta's dtypes."""
        if positions:
            self._early.update(zip(positions, self._load(positions), strict=True))
        return [self._early[k].momentum.dtype for k in positions]

    def numbered(self, position_of: Mapping[int, int]) -> "StreamedParams":
        """Set {parameter number in the plan: position in `members`}; return self."""
        self._positions = position_of
        return self

    @property
    def numbers(self) -> Collection[int]:
        """Numbers of the parameters in the plan, set by `numbered`."""
        return self._positions.keys()

    def parameter(self, number: int) -> Tensor:
        """Return the parameter of this number in the plan."""
        return self.members[self._positions[number]].parameter

    def load(self, numbers: Sequence[int]) -> list[ParamTask]:
        """Return one task per number, each once; updates momenta that are not loaded yet."""
        positions = [self._positions[n] for n in numbers]
        new = [k for k in positions if k not in self._early]
        found = dict(zip(new, self._load(new), strict=True)) if new else {}
        return [found[k] if k in found else self._early.pop(k) for k in positions]

    def store(self, numbers: Sequence[int], directions: Sequence[Tensor]) -> None:
        """Call the constructor's `store`, which moves weights, with positions in `members`."""
        self._store([self._positions[n] for n in numbers], directions)
