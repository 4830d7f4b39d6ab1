"""`Batched`: matrices of equal rule, shape, dtype and device, computed as one batch."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.execution.job import Job
from polarlight.linalg import foreach
from polarlight.linalg.iterated import LEAST_IN_PIECE, PIECE
from polarlight.linalg.precision import has_fast_bfloat16
from polarlight.linalg.slot import GRADIENT
from polarlight.linalg.stacks import stack_of
from polarlight.rule import UpdateRule

MOST_BYTES = 256 * 2**20
"""Largest stack of parameters in bytes; a larger parameter is a stack of its own."""

MOST_BYTES_ON_CPU = 8 * 2**20
"""Largest stack on a CPU: stacks that leave the cache are read from memory again and again."""

TINY = 2**10
"""Most elements of a matrix on a CPU that is cast to its weight's dtype in its batch."""


def capped_stacks(
    indices: Sequence[int],
    tensors: Sequence[Tensor],
    max_bytes: int,
    cut_equal_in_multiples_of: int = 1,
) -> list[list[int]]:
    """Split indices, in order, into lists of at most `max_bytes` of tensors (a larger one alone).

    Where a list ends among equal shapes, it keeps a multiple of `cut_equal_in_multiples_of` of
    them, if it has that many.
    """
    # `Tensor.nbytes` fails on shapes that a compiler keeps as symbols.
    widest = max([tensors[i].element_size() for i in indices], default=0)
    if indices and widest * sum([tensors[i].numel() for i in indices]) <= max_bytes:
        return [list(indices)]  # most often
    stacks: list[list[int]] = []
    size = 0
    for i in indices:
        nbytes = tensors[i].numel() * tensors[i].element_size()
        if not stacks or size + nbytes > max_bytes:
            shape = tensors[i].shape
            equal = [k for k in stacks[-1] if tensors[k].shape == shape] if stacks else []
            kept = len(equal) // cut_equal_in_multiples_of * cut_equal_in_multiples_of
            excess = equal[kept:] if kept else []
            if excess:
                del stacks[-1][-len(excess) :]
            stacks.append(excess)
            size = nbytes * len(excess)
        stacks[-1].append(i)
        size += nbytes
    return stacks


def _cpu_threads(tensors: Sequence[Tensor]) -> int:
    """Return the number of torch's threads if all tensors are on the CPU; 1 else, or in a graph.

    Each takes a product of its own in a bfloat16 batch: of three, two cores waste one.
    """
    on_cpu = {t.device.type for t in tensors} == {"cpu"}
    return torch.get_num_threads() if on_cpu and not torch.compiler.is_compiling() else 1


def step_stacks(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Split indices of tensors into lists of at most 256 MiB (CPU: 8 MiB), equal shapes adjacent.

    On an accelerator, where every operator costs a launch, a shape is cut only if it is larger than
    a stack.
    """
    alike: dict[torch.Size, list[int]] = {}
    for i, t in enumerate(tensors):
        alike.setdefault(t.shape, []).append(i)
    by_shape = [alike[shape] for shape in sorted(alike)]
    if "cpu" in {t.device.type for t in tensors}:
        order = [i for some in by_shape for i in some]
        return capped_stacks(order, tensors, MOST_BYTES_ON_CPU, _cpu_threads(tensors))
    stacks: list[list[int]] = []
    size = 0
    for some in by_shape:
        for stack in capped_stacks(some, tensors, MOST_BYTES):
            nbytes = sum([tensors[i].numel() * tensors[i].element_size() for i in stack])
            if not stacks or size + nbytes > MOST_BYTES:
                stacks.append([])
                size = 0
            stacks[-1] += stack
            size += nbytes
    return stacks


@dataclass(frozen=True, slots=True)
class Batched:
    """Executor that stacks equal jobs and computes each stack as one batch.

    Attributes:
        max_bytes: Largest stack, in bytes of its input matrices; a larger job is a stack of its
            own. Bounds the extra memory to a small multiple of this.
        piece_on_cpu: Bytes of a stack that stays in the cache of a CPU through all operations of
            its rule. Matrices of which four fit are stacked up to this size. One that is as large
            keeps all cores busy by itself in float32 and is not stacked; CPUs that iterate in
            bfloat16 take two such products at once in half the time, and stack them.
    """

    max_bytes: int = MOST_BYTES
    piece_on_cpu: int = PIECE

    def __post_init__(self) -> None:
        """Raise ValueError if a size in bytes is negative."""
        for name in ("max_bytes", "piece_on_cpu"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")

    def directions(self, jobs: Sequence[Job]) -> list[Tensor]:
        """Return one direction per job, in order; update the jobs' buffers in place."""
        directions = [job.matrix for job in jobs]  # each is replaced
        for stack in self._job_stacks(jobs):
            found = _compute_stack([jobs[index] for index in stack])
            for index, D in zip(stack, found, strict=True):
                directions[index] = D
        return directions

    def _job_stacks(self, jobs: Sequence[Job]) -> Iterator[list[int]]:
        """Yield lists of indices of jobs of equal rule, m, n, dtype and device, capped in bytes."""
        matrices = [job.matrix for job in jobs]
        alike: dict[tuple[int, torch.Size, torch.dtype, torch.device], list[int]] = {}
        for index, (job, M) in enumerate(zip(jobs, matrices, strict=True)):
            alike.setdefault((id(job.rule), M.shape, M.dtype, M.device), []).append(index)
        # Once per kind, not per job: rules are hashed, and shapes are cut.
        rules: dict[UpdateRule, int] = {}
        groups: dict[Hashable, list[int]] = {}
        for (_, shape, dtype, device), indices in alike.items():
            rule = rules.setdefault(jobs[indices[0]].rule, len(rules))
            groups.setdefault((rule, shape[-2:], dtype, device), []).extend(indices)
        for group in groups.values():
            first = matrices[min(group)]
            yield from capped_stacks(
                sorted(group), matrices, self._most_stack_bytes(first), _cpu_threads([first])
            )

    def _most_stack_bytes(self, M: Tensor) -> int:
        """Return the most bytes of one batch of matrices like M; 0 to compute each matrix alone."""
        if M.device.type != "cpu" or torch.compiler.is_compiling():  # a stack is code in a graph
            return self.max_bytes
        nbytes = M.shape[-2:].numel() * M.element_size()
        if nbytes >= self.piece_on_cpu:
            return min(self.max_bytes, MOST_BYTES_ON_CPU) if has_fast_bfloat16("cpu") else 0
        fits = LEAST_IN_PIECE * nbytes <= self.piece_on_cpu
        return min(self.max_bytes, self.piece_on_cpu) if fits else self.max_bytes


def _compute_stack(jobs: Sequence[Job]) -> list[Tensor]:
    """Return one direction per job, all of equal rule, m and n, in one batch; update buffers."""
    rule, first = jobs[0].rule, jobs[0].matrix
    dtype = rule.input_dtype(first.dtype, first.device)
    if len(jobs) == 1:
        X = first.to(dtype)
        D = rule.direction(X, jobs[0].buffers, scratch=X is not first)
        return [_to_step_dtype(D, first)]
    matrices = [job.matrix for job in jobs]
    buffers = {name: [job.buffers[name] for job in jobs] for name in jobs[0].buffers}
    kept = {name: _existing_stack(some) for name, some in buffers.items()}
    batches = {
        name: _stack(buffers[name], buffers[name][0].dtype) if batch is None else batch
        for name, batch in kept.items()
    }
    directions = rule.direction(_stack(matrices, dtype), batches, scratch=True)  # [b, m, n]
    for name, batch in batches.items():
        if kept[name] is None and name != GRADIENT:
            foreach.copy_(buffers[name], _unstack(batch, buffers[name]))
    return _unstack(_to_step_dtype(directions, first), matrices)


def _existing_stack(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return a view [b, p, q] of 2-D tensors adjacent in one tensor; None if they are not."""
    return stack_of(tensors) if tensors[0].ndim == 2 else None


def _stack(matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return a copy of matrices [..., m, n] as one batch [b, m, n] of a dtype, in order."""
    first = matrices[0]
    batch = _existing_stack(matrices)
    if batch is not None:
        return batch.to(dtype, copy=True)
    count = sum([M.shape[:-2].numel() for M in matrices])
    batch = torch.empty(count, *first.shape[-2:], dtype=dtype, device=first.device)
    foreach.copy_(_unstack(batch, matrices), list(matrices))
    return batch


def _unstack(batch: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Split a batch [b, m, n] into views in the shapes [..., m, n] of the tensors `like`."""
    if {M.ndim for M in like} == {2}:
        return list(batch.unbind())
    counts = [M.shape[:-2].numel() for M in like]
    return [part.view(M.shape) for part, M in zip(batch.split(counts), like, strict=True)]


def _to_step_dtype(direction: Tensor, M: Tensor) -> Tensor:
    """Return a direction in M's dtype; unchanged on a CPU if a matrix has over 1,024 elements.

    Weights of another dtype than their directions are stepped one by one, by a cast of each.
    """
    if M.device.type == "cpu" and M.shape[-2:].numel() > TINY:
        return direction
    return direction.to(M.dtype)
