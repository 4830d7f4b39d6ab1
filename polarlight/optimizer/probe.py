"""Looking at a run while it runs: what a probe is called with, and when."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from polarlight.optimizer.param_groups import Group, name_of
from polarlight.rule import Rule


@dataclass(frozen=True, slots=True)
class Observation:
    """What one step did to one parameter; tensors are the optimizer's own and must not be written.

    Attributes:
        name: The parameter's name, or its place in the groups when it has none.
        parameter: The parameter before the step.
        momentum: What the rule mapped, in the parameter's shape.
        direction: What is multiplied by -lr.
        group: The param group.
    """

    name: str
    parameter: Tensor
    momentum: Tensor
    direction: Tensor
    group: Mapping[str, Any]


@runtime_checkable
class Probe(Protocol):
    """Looks at steps; see `SpectralOptimizer.observe`."""

    def begin(self) -> bool:
        """Called once per step, before it; True asks for this step's observations."""

    def observe(self, observation: Observation) -> None:
        """Called for every parameter of a step that was asked for."""

    def end(self) -> None:
        """Called after such a step."""


@runtime_checkable
class CountingProbe(Probe, Protocol):
    """A probe that is told of every update, in the steps that it does not observe as well."""

    def count(self, name: str, rule: Rule | None, *, frozen: bool = False) -> None:
        """Called in every step for every parameter; the rule is None where nothing was done.

        `frozen` says that the parameter asks for no gradient.
        """


def count_updates(probes: Iterable[Probe], group: Group, index: int, places: set[int]) -> None:
    """Tell the probes that count which parameters of a group were updated."""
    for probe in probes:
        if isinstance(probe, CountingProbe):
            for i, p in enumerate(group["params"]):
                rule = group["rule"] if i in places else None
                probe.count(name_of(group, index, i), rule, frozen=not p.requires_grad)
