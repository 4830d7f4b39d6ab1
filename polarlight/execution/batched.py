"""Matrices of equal rule, shape, dtype and device, computed as one batch."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.execution.job import Job
from polarlight.linalg import foreach
from polarlight.rule import UpdateRule

MOST_BYTES = 256 * 2**20
"""Of parameters that are worked on at a time; one that is larger goes alone."""

MOST_BYTES_ON_CPU = 8 * 2**20
"""The same on a CPU, where what does not fit the cache is read from memory time and again."""


def capped(positions: Sequence[int], tensors: Sequence[Tensor], most: int) -> Iterator[list[int]]:
    """Cut positions into runs of at most `most` bytes; a tensor that is larger goes alone."""
    part: list[int] = []
    size = 0
    for i in positions:
        if part and size + tensors[i].nbytes > most:
            yield part
            part, size = [], 0
        part.append(i)
        size += tensors[i].nbytes
    if part:
        yield part


def parts_of_a_step(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Return positions, equal shapes next to each other, in parts of a bounded size."""
    on_cpu = any(t.device.type == "cpu" for t in tensors)
    most = MOST_BYTES_ON_CPU if on_cpu else MOST_BYTES
    order = sorted(range(len(tensors)), key=lambda i: tensors[i].shape)
    return capped(order, tensors, most)


@dataclass(frozen=True, slots=True)
class Batched:
    """Stacks equal jobs, computes each stack at once, and hands the slices back.

    Attributes:
        max_bytes: Largest stack, counted in bytes of its input matrices; a single job that is
            larger goes alone. Bounds the extra memory to a small multiple of this.
        alone_on_cpu: Entries from which a matrix on a CPU goes alone: one such product keeps all
            cores busy, and a stack would only leave the cache.
    """

    max_bytes: int = MOST_BYTES
    alone_on_cpu: int = 2**18

    def __post_init__(self) -> None:
        if self.max_bytes < 0:
            raise ValueError(f"max_bytes must be >= 0, got {self.max_bytes}")
        if self.alone_on_cpu < 0:
            raise ValueError(f"alone_on_cpu must be >= 0, got {self.alone_on_cpu}")

    def directions(self, jobs: Sequence[Job]) -> list[Tensor]:
        """Return one direction per job, in order."""
        results: dict[int, Tensor] = {}
        for stack in self._stacks(jobs):
            members = [jobs[index] for index in stack]
            results.update(zip(stack, _together(members), strict=True))
        return [results[index] for index in range(len(jobs))]

    def _stacks(self, jobs: Sequence[Job]) -> Iterator[list[int]]:
        """Return positions of jobs that go together, at most `max_bytes` at a time."""
        groups: dict[Hashable, list[int]] = {}
        rules: dict[UpdateRule, int] = {}  # whose hash is slow enough to be felt for every job
        distinct = {id(job.rule): job.rule for job in jobs}
        same = {key: rules.setdefault(rule, key) for key, rule in distinct.items()}
        for index, job in enumerate(jobs):
            M = job.matrix
            kind = (same[id(job.rule)], M.shape[-2:], M.dtype, M.device)
            groups.setdefault(kind, []).append(index)
        matrices = [job.matrix for job in jobs]
        for group in groups.values():
            M = matrices[group[0]]
            alone = M.device.type == "cpu" and M.shape[-2:].numel() >= self.alone_on_cpu
            yield from capped(group, matrices, 0 if alone else self.max_bytes)


def _together(jobs: Sequence[Job]) -> list[Tensor]:
    """Directions of jobs of equal rule and shape, computed as one batch [b, m, n]."""
    rule, first = jobs[0].rule, jobs[0].matrix
    dtype = rule.input_dtype(first.dtype, first.device)
    if len(jobs) == 1:
        return [_kept(rule.direction(first.to(dtype), jobs[0].buffers), first)]
    matrices = [job.matrix for job in jobs]
    kept = {name: [job.buffers[name] for job in jobs] for name in jobs[0].buffers}
    buffers = {name: _stacked(some, some[0].dtype) for name, some in kept.items()}
    directions = _kept(rule.direction(_stacked(matrices, dtype), buffers), first)
    for name, stack in buffers.items():
        foreach.copy_(kept[name], _parts(stack, kept[name]))
    return _parts(directions, matrices)


def _stacked(matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Matrices [..., m, n] as one batch [b, m, n] in a dtype, each read once."""
    first = matrices[0]
    count = sum(M.shape[:-2].numel() for M in matrices)
    batch = torch.empty(count, *first.shape[-2:], dtype=dtype, device=first.device)
    foreach.copy_(_parts(batch, matrices), list(matrices))
    return batch


def _parts(batch: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A batch [b, m, n] cut into matrices [..., m, n] of the shapes of others."""
    if all(M.ndim == 2 for M in like):
        return list(batch.unbind())
    counts = [M.shape[:-2].numel() for M in like]
    return [part.view(M.shape) for part, M in zip(batch.split(counts), like, strict=True)]


def _kept(direction: Tensor, M: Tensor) -> Tensor:
    """A direction in the dtype that it is used in: on a CPU as it comes, which is read once."""
    return direction if M.device.type == "cpu" else direction.to(M.dtype)
