"""`OneByOne`: one matrix after another, the reference for other executors."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from polarlight.execution.job import Job


@dataclass(frozen=True, slots=True)
class OneByOne:
    """Executor that computes each job on its own, in order."""

    def directions(self, jobs: Sequence[Job]) -> list[Tensor]:
        """Return one direction per job, in order."""
        return [job.rule.direction(job.matrix, job.buffers) for job in jobs]
