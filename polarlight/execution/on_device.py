"""`OnDevice`: directions of matrices that lie on the host, computed on an accelerator."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from polarlight.execution.batched import MOST_BYTES, Batched, capped_stacks
from polarlight.execution.job import Executor, Job
from polarlight.linalg import foreach
from polarlight.linalg.slot import GRADIENT
from polarlight.rule import HOST_COUNTER


@dataclass(frozen=True, slots=True)
class OnDevice:
    """Executor that copies jobs to a device, computes them there, and copies directions back.

    For weights and state in host memory with an accelerator at hand, as under FSDP2's CPU offload:
    `executor=OnDevice("cuda")`, and `executor=Sharded(OnDevice("cuda"))` for shards. Momenta and
    weights are still updated on the host, matrices that `Sharded` computes row-wise too; all other
    matrix products run on the device. A job that is on the device already is not copied.

    Args:
        device: Where matrices are mapped.
        executor: Computes the jobs there.
        max_bytes: Largest sum of input matrices that are on the device at a time; a larger one
            comes alone.

    Speed was not measured.

    Examples:
        >>> import torch, polarlight
        >>> from polarlight.execution.on_device import OnDevice
        >>> weight = torch.nn.Parameter(torch.ones(8, 4))
        >>> optimizer = polarlight.Muon([weight], lr=0.02, executor=OnDevice("cpu"))
        >>> weight.grad = torch.randn(8, 4)
        >>> optimizer.step()
    """

    device: torch.device | str
    executor: Executor = field(default_factory=Batched)
    max_bytes: int = MOST_BYTES

    def __post_init__(self) -> None:
        """Raise ValueError if `max_bytes` is negative."""
        if self.max_bytes < 0:
            raise ValueError(f"max_bytes must be >= 0, got {self.max_bytes}")

    def directions(self, jobs: Sequence[Job]) -> list[Tensor]:
        """Return one direction per job, in order, on its matrix's device; update buffers."""
        matrices = [job.matrix for job in jobs]
        results: dict[int, Tensor] = {}
        for some in capped_stacks(range(len(jobs)), matrices, self.max_bytes):
            results.update(zip(some, self._compute_on_device([jobs[i] for i in some]), strict=True))
        return [results[i] for i in range(len(jobs))]

    def _compute_on_device(self, jobs: Sequence[Job]) -> list[Tensor]:
        """Compute jobs on `self.device`; copy buffers back; return directions on jobs' devices."""
        moved = [
            replace(
                job,
                matrix=job.matrix.to(self.device, non_blocking=True),
                buffers={  # the host counter stays where it is
                    name: x if name == HOST_COUNTER else x.to(self.device, non_blocking=True)
                    for name, x in job.buffers.items()
                },
            )
            for job in jobs
        ]
        directions = self.executor.directions(moved)
        pairs = [
            (mine[name], x)
            for mine, there in zip(
                (job.buffers for job in jobs), (job.buffers for job in moved), strict=True
            )
            for name, x in there.items()
            if name != GRADIENT and x is not mine[name]
        ]
        if pairs:
            foreach.copy_([mine for mine, _ in pairs], [x for _, x in pairs])
        return [D.to(job.matrix.device) for D, job in zip(directions, jobs, strict=True)]
