"""`Job`: one matrix for a rule; buffers of a parameter, and its split into jobs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from polarlight.linalg import foreach
from polarlight.linalg.matrices import wide
from polarlight.linalg.slot import GRADIENT, Buffers
from polarlight.rule import HOST_COUNTER, UpdateRule
from polarlight.view import MatrixView


@dataclass(frozen=True, slots=True)
class Job:
    """Whole matrix or batch of matrices [..., m, n] with its rule and the buffers of its stages."""

    rule: UpdateRule
    matrix: Tensor
    buffers: Buffers


@runtime_checkable
class Executor(Protocol):
    """Interface that computes directions; may choose time and device, never values."""

    def directions(self, jobs: Sequence[Job]) -> list[Tensor]:
        """Return one direction per job (a matrix), in order; update the jobs' buffers in place."""


@dataclass(frozen=True, slots=True)
class OneByOne:
    """Executor that computes each job on its own, in order; the reference for other executors."""

    def directions(self, jobs: Sequence[Job]) -> list[Tensor]:
        """Return one direction per job, in order; update the jobs' buffers in place."""
        return [job.rule.direction(job.matrix, job.buffers) for job in jobs]


def new_buffers(
    rule: UpdateRule,
    view: MatrixView,
    parameter: Tensor,
    zeros: Callable[..., Tensor] = torch.zeros,
) -> dict[str, Tensor]:
    """Return a rule's {buffer: zeros}, no momentum; parts share a vector; host counter on CPU.

    A view with one part keeps the shapes that the stages ask for. With several parts (`RowBlocks`)
    the parts' buffers are concatenated in one vector, so that no name has an index in it; in one
    vector per expert where the parameter is a stack of experts.

    Args:
        rule: The update rule.
        view: The view that splits the parameter into matrices.
        parameter: The parameter.
        zeros: Allocator with the signature of `torch.zeros`; not used for the host counter.
    """
    dtype = wide(parameter.dtype)
    parts = view.shapes(parameter.shape)
    by_part = [rule.buffer_shapes(part) for part in parts]
    names = dict.fromkeys(name for shapes in by_part for name in shapes if name != GRADIENT)
    batch = common_batch(view, parameter.shape)
    wanted = {name: [shapes[name] for shapes in by_part if name in shapes] for name in names}
    return {
        name: (torch.zeros if name == HOST_COUNTER else zeros)(
            shapes[0]
            if len(parts) == 1
            else (*batch, sum(shape[len(batch) :].numel() for shape in shapes)),
            dtype=dtype,
            device="cpu" if name == HOST_COUNTER else parameter.device,
        )
        for name, shapes in wanted.items()
    }


def common_batch(view: MatrixView, shape: torch.Size) -> torch.Size:
    """Return shape[:-2] if all parts of the view have these leading dimensions; else ()."""
    leading = shape[:-2]
    return leading if all(part[:-2] == leading for part in view.shapes(shape)) else torch.Size()


BufferShapes = dict[tuple[int, torch.Size], dict[str, torch.Size]]
"""Buffer shapes by (id of the rule, shape of the matrix): a cache over many parameters."""


def job_of_whole(
    rule: UpdateRule, momentum: Tensor, state: dict[str, Tensor], shape_cache: BufferShapes
) -> Job:
    """Return a `Job` of `momentum` [..., m, n] and its buffers in `state`; fills `shape_cache`."""
    key = id(rule), momentum.shape
    shapes = shape_cache.get(key)
    if shapes is None:
        shapes = shape_cache[key] = rule.buffer_shapes(momentum.shape)
    buffers = {name: state[name] for name in shapes}
    if GRADIENT in buffers:
        buffers[GRADIENT] = foreach.as_plain(buffers[GRADIENT])
    return Job(rule, momentum, buffers)


def jobs_of(
    rule: UpdateRule,
    view: MatrixView,
    momentum: Tensor,
    state: dict[str, Tensor],
    shape_cache: BufferShapes,
) -> list[Job]:
    """Return one `Job` per part of `view`, aliasing momentum and state; fills `shape_cache`.

    Args:
        rule: The update rule.
        view: The view that splits the parameter into matrices.
        momentum: Input of the rule, in the parameter's shape.
        state: The parameter's buffers by name, and its gradient if a stage asks for it.
        shape_cache: Buffer shapes of parameters before; added to.
    """
    parts = view.split(momentum)
    if len(parts) == 1:
        if GRADIENT in state:
            state = {**state, GRADIENT: view.split(foreach.as_plain(state[GRADIENT]))[0]}
        return [job_of_whole(rule, parts[0], state, shape_cache)]
    buffer_shapes = []
    for part in parts:
        key = id(rule), part.shape
        if key not in shape_cache:
            shape_cache[key] = rule.buffer_shapes(part.shape)
        buffer_shapes.append(shape_cache[key])
    asked = GRADIENT in set().union(*buffer_shapes)
    gradients = view.split(foreach.as_plain(state[GRADIENT])) if asked else []
    taken: dict[str, int] = {}
    batch_dims = len(common_batch(view, momentum.shape))
    jobs = []
    for number, (part, shapes) in enumerate(zip(parts, buffer_shapes, strict=True)):
        buffers = {}
        for name, shape in shapes.items():
            if name == GRADIENT:
                buffers[name] = gradients[number]
                continue
            start = taken.get(name, 0)
            taken[name] = start + shape[batch_dims:].numel()
            vector = state[name][..., start : taken[name]]  # [*batch, p q]
            buffers[name] = vector.unflatten(-1, shape[batch_dims:])  # [*batch, ..., p, q]
        jobs.append(Job(rule, part, buffers))
    return jobs
