"""`Options`: limits and thresholds of a plan."""

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Limits and thresholds of a plan.

    Attributes:
        spread: A matrix is computed by a process that holds it in full up to this multiple of the
            mean load, at least 1; every other matrix goes to the process with the least load.
        bucket_bytes: Most bytes that an owner gathers and scatters per bucket, and that copies
            broadcast at a time, unless a single matrix is larger. While one bucket is computed, the
            next one is received and the directions of the last one are sent.
        row_bytes: Smallest matrix, in bytes, that is computed row-wise: on its shards of rows, if
            its rule needs no more than sums over the other rows. Smaller ones are gathered, as one
            message holds many of them.
        sum_weight: Cost of an all-reduced byte in units of a byte sent to an owner: less than 1
            where the network reduces by itself, 0 to compute row-wise whatever can be.
        peers: Most processes that one process exchanges messages with; where more share a
            parameter, messages take two hops: within a group of neighbours by global rank, and
            between such groups.
        flops_per_byte: Flops that take an owner as long as a byte that it receives or sends.
        node_size: Processes of a node, neighbours by global rank. So many at most compute one
            matrix together; 1 leaves every matrix to one owner.
        node_sum_weight: Cost of a byte that processes of a node all-reduce for a matrix that they
            compute together, in units of a byte sent to an owner. NVLink has about nine times the
            rate of a network card; 1 where links within a node are no faster than others.
    """

    spread: float = 1.1
    bucket_bytes: int = 128 * 2**20
    row_bytes: int = 2**20
    sum_weight: float = 1.0
    peers: int = 128
    flops_per_byte: float = 4000.0
    node_size: int = 8
    node_sum_weight: float = 1 / 9

    def __post_init__(self) -> None:
        """Raise ValueError if a number is out of range."""
        if not self.spread >= 1:
            raise ValueError(f"spread must be >= 1, got {self.spread}")
        if self.bucket_bytes < 1:
            raise ValueError(f"bucket_bytes must be >= 1, got {self.bucket_bytes}")
        if self.row_bytes < 0:
            raise ValueError(f"row_bytes must be >= 0, got {self.row_bytes}")
        for name in ("peers", "node_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("sum_weight", "flops_per_byte", "node_sum_weight"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {getattr(self, name)}")
