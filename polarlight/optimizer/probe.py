"""Probes: callbacks that receive the updates of a step, and the counts of updates."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

from torch import Tensor
from torch._compile import _disable_dynamo
from torch.utils.hooks import RemovableHandle

from polarlight.execution.param_task import ParamTask, full_tensor
from polarlight.lookup import described
from polarlight.optimizer.param_groups import Group, name_of
from polarlight.rule import Rule

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Observation:
    """Update of one parameter in one step; its tensors belong to the optimizer: do not write them.

    Attributes:
        name: The parameter's name, or `param_groups[i]['params'][k]` if it has none.
        parameter: The parameter before the step.
        momentum: Input of the rule, in the parameter's shape.
        direction: Tensor that is multiplied by -lr.
        group: The param group.
    """

    name: str
    parameter: Tensor
    momentum: Tensor
    direction: Tensor
    group: Mapping[str, Any]


@runtime_checkable
class Probe(Protocol):
    """Callback on steps; see `SpectralOptimizer.observe`."""

    def begin(self) -> bool:
        """Start a step; return True to receive its observations."""

    def observe(self, observation: Observation) -> None:
        """Receive the update of one parameter, in a step for which `begin` returned True."""

    def end(self) -> None:
        """Receive the end of a step for which `begin` returned True."""


@runtime_checkable
class CountingProbe(Probe, Protocol):
    """Probe that counts updates, also in steps that it does not observe."""

    def count(self, name: str, rule: Rule | None, *, frozen: bool = False) -> None:
        """Count one update of a parameter, in every step; the rule is None if it was not updated.

        Args:
            name: The parameter's name.
            rule: The rule that updated it.
            frozen: Whether the parameter takes no gradient.
        """


def add_probe(probes: OrderedDict[int, Probe], probe: Probe) -> RemovableHandle:
    """Add a probe to `probes`; return the handle whose `remove()` takes it out again.

    Raises:
        TypeError: If it has not the three methods of a probe, or is a class.
    """
    if isinstance(probe, type) or not isinstance(probe, Probe):
        raise TypeError(
            "observe takes a probe, an object with begin(), observe(observation) and end(), such "
            f"as polarlight.NeuronMonitor() or polarlight.RuleCheck(), got {described(probe)}"
        )
    handle = RemovableHandle(probes)
    probes[handle.id] = probe
    return handle


def report_update(
    probes: Sequence[Probe],
    name: str,
    group: Group,
    p: Tensor,
    before: Tensor,
    momentum: Tensor,
    direction: Tensor,
) -> None:
    """Call each probe's `observe` with the update of p; all-gather a sharded momentum, direction.

    `before` is the whole weight before the step; momentum and direction are local. Every process of
    the mesh must call this.
    """
    if probes:
        observation = Observation(
            name, before, full_tensor(momentum, p), full_tensor(direction, p), group
        )
        for probe in probes:
            probe.observe(observation)


def report_tasks(
    probes: Sequence[Probe],
    groups: Sequence[Group],
    tasks: Sequence[ParamTask],
    directions: Sequence[Tensor],
) -> None:
    """Call each probe's `observe` per task, before weights change; `groups` holds one per task."""
    if probes:
        for group, task, U in zip(groups, tasks, directions, strict=True):
            p = task.parameter
            U = U.to(p.dtype)
            report_update(probes, task.name, group, p, full_tensor(p), task.momentum, U)


def count_updates(
    probes: Iterable[Probe], groups: Sequence[Group], updated: Mapping[int, set[int]]
) -> None:
    """Call probes' `count` for all params of groups in `updated`, rule None for others' indices."""
    counting = [probe for probe in probes if isinstance(probe, CountingProbe)]
    for i, param_indices in updated.items():
        for probe in counting:
            for k, p in enumerate(groups[i]["params"]):
                rule = groups[i]["rule"] if k in param_indices else None
                probe.count(name_of(groups[i], i, k), rule, frozen=not p.requires_grad)


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function so that `torch.compile` breaks its graph there and runs the function as is.

    Same as `torch.compiler.disable`, which loads the whole compiler when it decorates; torch's own
    optimizers use this one.
    """
    return cast(Callable[P, R], _disable_dynamo(function))
