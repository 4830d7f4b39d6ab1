"""One matrix to be mapped, and how a parameter becomes such jobs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from polarlight.linalg.matrices import at_least_float32
from polarlight.rule import Buffers, UpdateRule
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


def new_buffers(rule: UpdateRule, view: MatrixView, parameter: Tensor) -> dict[str, Tensor]:
    """Zero buffers for the stages of `rule`, one tensor per name.

    Several parts (`RowBlocks`) are stacked along dim -2, so that a name has no index in it.
    """
    stacked: dict[str, list[torch.Size]] = {}
    for part in view.shapes(parameter.shape):
        for name, shape in rule.buffer_shapes(part).items():
            stacked.setdefault(name, []).append(shape)
    dtype = at_least_float32(parameter.new_empty(())).dtype
    return {
        name: torch.zeros(
            (*shapes[0][:-2], sum(shape[-2] for shape in shapes), shapes[0][-1]),
            dtype=dtype,
            device=parameter.device,
        )
        for name, shapes in stacked.items()
    }


def jobs_of(
    rule: UpdateRule, view: MatrixView, momentum: Tensor, state: dict[str, Tensor]
) -> list[Job]:
    """The jobs of one parameter: a matrix and views of its buffers for every part of the view."""
    offsets: dict[str, int] = {}
    jobs = []
    for part in view.split(momentum):
        buffers = {}
        for name, shape in rule.buffer_shapes(part.shape).items():
            start = offsets.get(name, 0)
            buffers[name] = state[name].narrow(-2, start, shape[-2])
            offsets[name] = start + shape[-2]
        jobs.append(Job(rule, part, buffers))
    return jobs
