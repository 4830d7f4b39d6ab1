"""What a step asks of one parameter, and which executor answers.

Elementwise work is done on what lies here: parameters, gradients and state are looked at through
`local`, which is the tensor itself on one device and the shard of a DTensor.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.nn import Parameter

from polarlight.execution.job import Executor, Needs, jobs_of, new_buffers
from polarlight.execution.sharded import collectives
from polarlight.linalg import foreach
from polarlight.rule import UpdateRule
from polarlight.view import MatrixView


@dataclass(frozen=True, slots=True)
class Work:
    """A parameter whose direction is wanted.

    Attributes:
        name: For messages.
        rule: What happens to its matrices.
        view: Which these are.
        parameter: The parameter; says where it lies.
        momentum: What the rule maps, as far as it lies here.
        state: Buffers by name, as they are kept.
    """

    name: str
    rule: UpdateRule
    view: MatrixView
    parameter: Tensor
    momentum: Tensor
    state: dict[str, Tensor]


@runtime_checkable
class WorkExecutor(Protocol):
    """An executor that wants to see whole parameters, and all of a step at once."""

    def directions_of(self, works: Sequence[Work]) -> list[Tensor]:
        """One direction per work, as far as it lies here; buffers are updated in place."""


def directions_of(executor: Executor | WorkExecutor, works: Sequence[Work]) -> list[Tensor]:
    """One direction per work, in the momentum's shape."""
    if isinstance(executor, WorkExecutor):
        return executor.directions_of(works)
    known: Needs = {}
    jobs = [jobs_of(w.rule, w.view, foreach.as_plain(w.momentum), w.state, known) for w in works]
    results = iter(executor.directions([job for parts in jobs for job in parts]))
    return [
        w.view.join([next(results) for _ in parts]) for w, parts in zip(works, jobs, strict=True)
    ]


_PLAIN = (Tensor, Parameter)
"""What is asked about most, many times in a step."""


def is_sharded(x: Tensor) -> bool:
    """Whether x is a DTensor; nothing is imported to find out."""
    if type(x) in _PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Tensor) -> Tensor:
    """What of x lies here, sharing its memory."""
    return x.to_local() if is_sharded(x) else x  # type: ignore[attr-defined]


def whole(x: Tensor, parameter: Tensor | None = None) -> Tensor:
    """All of x, or of the shard x that lies like the parameter; every process must ask at once."""
    if parameter is not None and is_sharded(parameter):
        x = collectives.like(x, parameter)
    return x.full_tensor() if is_sharded(x) else x  # type: ignore[attr-defined]


def gradient_of(parameter: Tensor) -> Tensor:
    """What of the gradient lies here, as the parameter lies."""
    gradient = parameter.grad
    assert gradient is not None
    return collectives.gradient_beside(parameter) if is_sharded(parameter) else gradient


def new_buffers_of(
    rule: UpdateRule, view: MatrixView, parameter: Tensor, name: str
) -> dict[str, Tensor]:
    """Zero buffers of a parameter, DTensors beside a DTensor.

    Raises:
        ValueError: If one of its placements is neither a shard nor a copy.
    """
    if not is_sharded(parameter):
        return new_buffers(rule, view, parameter)
    collectives.layout_of(parameter, name)  # a placement that cannot be used is said at once
    return new_buffers(rule, view, parameter, partial(collectives.zeros_beside, parameter, name))
