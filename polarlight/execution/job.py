"""One matrix to be mapped, and how a parameter becomes such jobs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from polarlight.linalg.matrices import at_least_float32
from polarlight.linalg.slot import Buffers
from polarlight.rule import HOST_COUNTER, UpdateRule
from polarlight.view import MatrixView


@dataclass(frozen=True, slots=True)
class Job:
    """A whole matrix (or a batch of them, [..., m, n]), its rule and its stages' buffers."""

    rule: UpdateRule
    matrix: Tensor
    buffers: Buffers


@runtime_checkable
class Executor(Protocol):
    """Computes directions; may choose time and place, never values."""

    def directions(self, jobs: Sequence[Job]) -> list[Tensor]:
        """One direction per job, in order; the jobs' buffers are updated in place."""


def new_buffers(
    rule: UpdateRule,
    view: MatrixView,
    parameter: Tensor,
    zeros: Callable[..., Tensor] = torch.zeros,
) -> dict[str, Tensor]:
    """Zero buffers for the stages of `rule`, one tensor per name; on the host by `torch.zeros`.

    A view with one part keeps the shapes that the stages ask for. With several parts (`RowBlocks`)
    the parts' buffers lie end to end in one vector, so that a name has no index in it; in one per
    expert where the parameter is a stack of them.
    """
    dtype = at_least_float32(parameter.new_empty(())).dtype
    parts = view.shapes(parameter.shape)
    needs = [rule.buffer_shapes(part) for part in parts]
    names = dict.fromkeys(name for need in needs for name in need)
    stack = stacked(view, parameter.shape)
    shapes = {name: [need[name] for need in needs if name in need] for name in names}
    return {
        name: (torch.zeros if name == HOST_COUNTER else zeros)(
            wanted[0]
            if len(parts) == 1
            else (*stack, sum(shape[len(stack) :].numel() for shape in wanted)),
            dtype=dtype,
            device="cpu" if name == HOST_COUNTER else parameter.device,
        )
        for name, wanted in shapes.items()
    }


def stacked(view: MatrixView, shape: torch.Size) -> torch.Size:
    """The parameter's leading dimensions, if every part of the view has them too; else none."""
    leading = shape[:-2]
    return leading if all(part[:-2] == leading for part in view.shapes(shape)) else torch.Size()


Needs = dict[tuple[int, torch.Size], dict[str, torch.Size]]
"""Buffers that a rule, by its id, needs for a shape: asked once for many parameters."""


def jobs_of(
    rule: UpdateRule, view: MatrixView, momentum: Tensor, state: dict[str, Tensor], known: Needs
) -> list[Job]:
    """The jobs of one parameter: a matrix and views of its buffers for every part of the view.

    Args:
        rule: What happens to the matrices.
        view: Which these are.
        momentum: What the rule maps.
        state: The parameter's buffers by name.
        known: What has been asked of rules before; added to.
    """
    parts = view.split(momentum)
    needs = []
    for part in parts:
        key = id(rule), part.shape
        if key not in known:
            known[key] = rule.buffer_shapes(part.shape)
        needs.append(known[key])
    if len(parts) == 1:
        return [Job(rule, parts[0], {name: state[name] for name in needs[0]})]
    taken: dict[str, int] = {}
    depth = len(stacked(view, momentum.shape))
    jobs = []
    for part, shapes in zip(parts, needs, strict=True):
        buffers = {}
        for name, shape in shapes.items():
            start = taken.get(name, 0)
            taken[name] = start + shape[depth:].numel()
            buffers[name] = state[name][..., start : taken[name]].unflatten(-1, shape[depth:])
        jobs.append(Job(rule, part, buffers))
    return jobs
