"""Sources of a sharded step's parameters: all loaded before it, or each when it is needed."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from polarlight.execution.param_task import Member, ParamTask


class ParamSource(Protocol):
    """Interface of the parameters of a step, by their number in the plan."""

    @property
    def numbers(self) -> Collection[int]:
        """Numbers of all parameters."""

    def parameter(self, number: int) -> Tensor:
        """Return a parameter."""

    def load(self, numbers: Sequence[int]) -> list[ParamTask]:
        """Return tasks, each one once: a momentum is updated when it is loaded."""

    def store(self, numbers: Sequence[int], directions: Sequence[Tensor]) -> None:
        """Take complete directions, in the shape of each local shard."""


class Loaded:
    """Source of tasks that are there already, which keeps all directions until the end.

    Attributes:
        tasks: Tasks by number.
        directions: Directions that were stored, by number.
    """

    def __init__(self, tasks: Mapping[int, ParamTask]) -> None:
        self.tasks = tasks
        self.directions: dict[int, Tensor] = {}

    @property
    def numbers(self) -> Collection[int]:
        """Numbers of all tasks."""
        return self.tasks.keys()

    def parameter(self, number: int) -> Tensor:
        """Return the parameter of a task."""
        return self.tasks[number].parameter

    def load(self, numbers: Sequence[int]) -> list[ParamTask]:
        """Return tasks."""
        return [self.tasks[n] for n in numbers]

    def store(self, numbers: Sequence[int], directions: Sequence[Tensor]) -> None:
        """Keep directions."""
        self.directions.update(zip(numbers, directions, strict=True))


class StreamedParams:
    """Parameters whose momenta are formed when they are needed, and which move one by one.

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
        self.members, self._load, self._store = members, load, store
        self._early: dict[int, ParamTask] = {}
        self._places: Mapping[int, int] = {}

    def momentum_dtypes(self, places: Sequence[int]) -> list[torch.dtype]:
        """Return the dtypes of some parameters' momenta; loads them."""
        if places:
            self._early.update(zip(places, self._load(places), strict=True))
        return [self._early[place].momentum.dtype for place in places]

    def numbered(self, places: Mapping[int, int]) -> "StreamedParams":
        """Return this, as the source of the parameters at these positions, by number in a plan."""
        self._places = places
        return self

    @property
    def numbers(self) -> Collection[int]:
        """Numbers of the parameters."""
        return self._places.keys()

    def parameter(self, number: int) -> Tensor:
        """Return a parameter."""
        return self.members[self._places[number]].parameter

    def load(self, numbers: Sequence[int]) -> list[ParamTask]:
        """Return tasks, each one once."""
        places = [self._places[n] for n in numbers]
        new = [place for place in places if place not in self._early]
        found = dict(zip(new, self._load(new), strict=True)) if new else {}
        return [found[p] if p in found else self._early.pop(p) for p in places]

    def store(self, numbers: Sequence[int], directions: Sequence[Tensor]) -> None:
        """Move weights by complete directions."""
        self._store([self._places[n] for n in numbers], directions)
