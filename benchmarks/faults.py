"""Executors that break a rule in one way each, for `benchmarks.rule_check` and its tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polarlight.execution.batched import Batched
from polarlight.execution.job import Job, jobs_of
from polarlight.execution.param_task import ParamTask

Fault = Callable[["Faulty", str, Job, Tensor], Tensor]
"""(executor, name of the matrix, job, right direction) -> the direction that is handed on."""


ROUNDING = 0.01
"""Up to this part of its norm a direction may be off and still count as right."""


@dataclass
class Faulty:
    """Computes directions rightly, and hands on what a fault makes of them.

    Attributes:
        fault: What is wrong.
        touched: Names of the parameters that got another direction than the right one.
        before: The last step's directions, by matrix.
    """

    fault: Fault
    touched: set[str] = field(default_factory=set)
    before: dict[str, Tensor] = field(default_factory=dict)

    def directions_of(self, tasks: Sequence[ParamTask]) -> list[Tensor]:
        """One direction per parameter; all of a step are asked for at once."""
        parts = [jobs_of(w.rule, w.view, w.momentum, w.state, {}) for w in tasks]
        jobs = [job for some in parts for job in some]
        buffers = [{name: x.clone() for name, x in job.buffers.items()} for job in jobs]
        right = Batched().directions(jobs)
        names = [
            f"{w.name} {i}" for w, some in zip(tasks, parts, strict=True) for i in range(len(some))
        ]
        owners = [w.name for w, some in zip(tasks, parts, strict=True) for _ in some]
        given = []
        for name, owner, job, kept, D in zip(names, owners, jobs, buffers, right, strict=True):
            wrong = self.fault(self, name, Job(job.rule, job.matrix, kept), D)
            if torch.linalg.vector_norm(wrong - D) > ROUNDING * torch.linalg.vector_norm(D):
                self.touched.add(owner)
            given.append(wrong)
        self.before = dict(zip(names, right, strict=True))
        results = iter(given)
        return [
            w.view.join([next(results) for _ in some]) for w, some in zip(tasks, parts, strict=True)
        ]


def _as_large(X: Tensor, D: Tensor) -> Tensor:
    """X with the Frobenius norm of D, so that only its direction is wrong."""
    sizes = torch.linalg.matrix_norm(D), torch.linalg.matrix_norm(X.float())
    factor = torch.where(sizes[1] == 0, 0.0, sizes[0] / sizes[1])
    return (X * factor[..., None, None]).to(D.dtype)


def _alone(job: Job, X: Tensor) -> Tensor:
    """The rule's first direction of X, with buffers of its own."""
    shapes = job.rule.buffer_shapes(X.shape)
    return job.rule.direction(X, {name: torch.zeros(shape) for name, shape in shapes.items()})


def wrong_axis(faulty: Faulty, name: str, job: Job, D: Tensor) -> Tensor:
    """Every column is taken for a matrix of its own."""
    columns = job.matrix.mT.unsqueeze(-1)  # [..., n, m, 1]
    return _as_large(_alone(job, columns).squeeze(-1).mT, D)


def wrong_scale(faulty: Faulty, name: str, job: Job, D: Tensor) -> Tensor:
    """Twice as large."""
    return 2 * D


def stale_buffer(faulty: Faulty, name: str, job: Job, D: Tensor) -> Tensor:
    """The direction of the step before; the first step is right."""
    return faulty.before.get(name, D)


def half_the_heads(faulty: Faulty, name: str, job: Job, D: Tensor) -> Tensor:
    """Of a batch of heads or experts only the first half is mapped; single matrices are right."""
    if D.ndim == 2:
        return D
    half = len(D) // 2
    return torch.cat([D[:half], _as_large(job.matrix[half:], D[half:])])


def skipped_matrix(faulty: Faulty, name: str, job: Job, D: Tensor) -> Tensor:
    """One matrix of the model keeps its momentum: the first one that is seen."""
    others = faulty.touched - {name.rsplit(" ", 1)[0]}
    return D if others else _as_large(job.matrix, D)


def shard_for_matrix(faulty: Faulty, name: str, job: Job, D: Tensor) -> Tensor:
    """Each half of the rows is taken for the matrix."""
    halves = job.matrix.chunk(2, dim=-2)
    return _as_large(torch.cat([_alone(job, half) for half in halves], dim=-2), D)


def transposed_view(faulty: Faulty, name: str, job: Job, D: Tensor) -> Tensor:
    """The direction is put back by columns where rows were taken."""
    return D.mT.reshape(D.shape)


def noise(faulty: Faulty, name: str, job: Job, D: Tensor) -> Tensor:
    """Noise of three tenths of the direction's norm on top."""
    generator = torch.Generator().manual_seed(len(faulty.before))
    added = torch.randn(D.shape, generator=generator).to(D.dtype)
    return D + 0.3 * _as_large(added, D)


FAULTS: dict[str, Fault] = {
    "wrong axis": wrong_axis,
    "wrong scale": wrong_scale,
    "stale buffer": stale_buffer,
    "half the heads": half_the_heads,
    "skipped matrix": skipped_matrix,
    "shard for matrix": shard_for_matrix,
    "transposed view": transposed_view,
    "noise": noise,
}
