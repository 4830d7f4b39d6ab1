"""One matrix after another: the definition of correct."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from polarlight.execution.job import Job


@dataclass(frozen=True, slots=True)
class OneByOne:
    """Computes each job on its own, in the order given."""

    def directions(self, jobs: Sequence[Job]) -> list[Tensor]:
        """One direction per job."""
        return [job.rule.direction(job.matrix, job.buffers) for job in jobs]
