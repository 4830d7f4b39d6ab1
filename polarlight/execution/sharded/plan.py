"""`ShardedPlan`: owner and order of every matrix of a step on many processes, decided beforehand.

It is made of shapes, layouts and rules alone, and nothing is measured: equal on every process.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, prod

from polarlight.execution.sharded import assignment
from polarlight.execution.sharded.bucketing import Buckets, Charges
from polarlight.execution.sharded.kinds import HolderTable, MatrixKind, matrices_and_kinds
from polarlight.execution.sharded.layouts import Coordinate
from polarlight.execution.sharded.rowwise import Rowwise, choose_rowwise, param_rowwise_cost
from polarlight.execution.sharded.specs import MATRIX, MatrixSpec, ParamSpec
from polarlight.execution.sharded.topology import Axes, Topology


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
            parameter, messages go within a node first, and across nodes from there.
        flops_per_byte: Flops that take an owner as long as a byte that it receives or sends.
    """

    spread: float = 1.1
    bucket_bytes: int = 128 * 2**20
    row_bytes: int = 2**20
    sum_weight: float = 1.0
    peers: int = 128
    flops_per_byte: float = 4000.0

    def __post_init__(self) -> None:
        """Raise ValueError if a number is out of range."""
        if not self.spread >= 1:
            raise ValueError(f"spread must be >= 1, got {self.spread}")
        if self.bucket_bytes < 1:
            raise ValueError(f"bucket_bytes must be >= 1, got {self.bucket_bytes}")
        if self.row_bytes < 0:
            raise ValueError(f"row_bytes must be >= 0, got {self.row_bytes}")
        if not 0 <= self.sum_weight < inf:
            raise ValueError(f"sum_weight must be >= 0 and finite, got {self.sum_weight}")
        if self.peers < 1:
            raise ValueError(f"peers must be >= 1, got {self.peers}")
        if not 0 <= self.flops_per_byte < inf:
            raise ValueError(f"flops_per_byte must be >= 0 and finite, got {self.flops_per_byte}")


@dataclass(frozen=True)
class ShardedPlan:
    """Owners and order of all matrices of some parameters.

    Attributes:
        params: The parameters.
        coordinates: Mesh coordinate of every process, by rank in the group.
        options: Limits and thresholds.
        ranks: Global rank of every process, by rank in the group; by default the same.
        base_loads: Load of every process by parameters on other meshes, in flops; by default none.
    """

    params: Sequence[ParamSpec]
    coordinates: Sequence[Coordinate]
    options: Options
    ranks: Sequence[int] = ()
    base_loads: Sequence[float] = ()

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self.coordinates)

    @cached_property
    def rowwise(self) -> dict[int, Rowwise]:
        """Parameters that are computed on their shards of rows, by number; they have no owner."""
        return choose_rowwise(self.params, self.options.row_bytes, self.options.sum_weight)

    @cached_property
    def matrices(self) -> list[MatrixSpec]:
        """Every matrix that has an owner, in the order of parameters and their views."""
        return self._matrices_and_kinds[0]

    @cached_property
    def kinds(self) -> list[MatrixKind]:
        """Kind of each matrix."""
        return self._matrices_and_kinds[1]

    @cached_property
    def _matrices_and_kinds(self) -> tuple[list[MatrixSpec], list[MatrixKind]]:
        """Matrices that have an owner, and the kind of each one."""
        owned = [(i, spec) for i, spec in enumerate(self.params) if i not in self.rowwise]
        return matrices_and_kinds(owned, self.holders)

    @cached_property
    def holders(self) -> HolderTable:
        """Processes by mesh coordinate, and the holders of blocks."""
        return HolderTable(self.coordinates)

    @cached_property
    def _rowwise_load(self) -> tuple[list[float], list[int]]:
        """Two lists by rank, costs and flops of row-wise parameters; costs include `base_loads`."""
        costs, total = list(self.base_loads) or [0.0] * self.size, [0] * self.size
        for number in self.rowwise:
            spec = self.params[number]
            shapes = [spec.layouts[MATRIX].local_shape(where) for where in self.coordinates]
            by_shape = {shape: param_rowwise_cost(spec, shape[-2]) for shape in set(shapes)}
            for rank, shape in enumerate(shapes):
                found = by_shape[shape]
                if found is not None:
                    costs[rank] += prod(shape[:-2]) * found.cost
                    total[rank] += prod(shape[:-2]) * found.flops
        return costs, total

    @cached_property
    def costs(self) -> list[float]:
        """Cost of each matrix, in flops."""
        return [kind.cost for kind in self.kinds]

    @cached_property
    def topology(self) -> Topology:
        """Groups of processes that exchange shards, nodes and copies among them."""
        return Topology(self.coordinates, self.ranks or range(self.size), self.options.peers)

    @cached_property
    def transfer_costs(self) -> list[float]:
        """Cost in flops of sending each matrix to an owner that does not hold it, and back."""
        weight = 2 * self.options.flops_per_byte
        return [weight * kind.nbytes for kind in self.kinds]

    @cached_property
    def owners(self) -> list[int]:
        """Rank of the process that computes each matrix."""
        base_loads, _ = self._rowwise_load
        return assignment.owners(
            self.costs,
            [kind.whole_holders for kind in self.kinds],
            self.size,
            self.options.spread,
            base_loads,
            self.transfer_costs,
            [kind.part_holders for kind in self.kinds],
        )

    @cached_property
    def loads(self) -> list[float]:
        """Load of each rank in flops: its matrices and their transfers, row-wise, other meshes."""
        costs = [
            cost + moved if gathered else cost
            for cost, moved, gathered in zip(
                self.costs, self.transfer_costs, self.gathered, strict=True
            )
        ]
        return assignment.loads(costs, self.owners, self.size, self._rowwise_load[0])

    def load_of_its_own(self, rank: int) -> float:
        """Return a process's load in flops without that of other meshes (`base_loads`)."""
        return self.loads[rank] - (self.base_loads[rank] if self.base_loads else 0.0)

    @cached_property
    def flops(self) -> list[int]:
        """Flops of products and decompositions per process, owned and row-wise."""
        total = list(self._rowwise_load[1])
        for kind, owner in zip(self.kinds, self.owners, strict=True):
            total[owner] += kind.flops
        return total

    @cached_property
    def buckets(self) -> list[list[int]]:
        """Matrix numbers of each bucket, with up to `bucket_bytes` per owner; local ones first.

        In each owner's queue, matrices that it holds in full come first: there is something to
        compute while the others are received. Larger ones come before smaller ones. A bucket is
        bounded for owners, for processes that hold parts, and for those that pass them on.
        """
        queues: list[list[int]] = [[] for _ in range(self.size)]
        for number, owner in enumerate(self.owners):
            queues[owner].append(number)
        nbytes = [kind.nbytes for kind in self.kinds]
        buckets, charges = Buckets(self.options.bucket_bytes), Charges(self.topology, self.kinds)
        for owner, queue in enumerate(queues):
            bucket = 0
            for number in sorted(queue, key=lambda n: (self.gathered[n], -nbytes[n], n)):
                gathers, returns = self.gathered[number], self.returned[number]
                taken = charges.of_matrix(
                    self.kinds[number], owner, gathers=gathers, returns=returns
                )
                bucket = buckets.add(number, taken, bucket)
        return [sorted(bucket) for bucket in buckets.numbers if bucket]

    @cached_property
    def gathered(self) -> list[bool]:
        """True for each matrix that has to be gathered: its owner does not hold all of it."""
        return [
            not kind.has_all(owner) for kind, owner in zip(self.kinds, self.owners, strict=True)
        ]

    @cached_property
    def returned(self) -> list[bool]:
        """True for each matrix whose direction goes to other processes of the owner's copy.

        One whose owner holds it in full may have buffers on others: two numbers of a single row.
        """
        cut = [
            any(
                split is not None and split.dim >= len(spec.layouts[MATRIX].shape) - 2
                for split in spec.layouts[MATRIX].splits
            )
            for spec in self.params
        ]
        return [
            gathered or cut[matrix.param]
            for matrix, gathered in zip(self.matrices, self.gathered, strict=True)
        ]

    def axes_of(self, matrix_number: int) -> Axes:
        """Return the mesh dimensions along which a matrix is replicated."""
        return self.kinds[matrix_number].axes

    def in_one_copy(self, axes: Axes, rank: int, other: int) -> bool:
        """Return whether two processes hold parts of the same copy of what `axes` replicate."""
        here, there = self.coordinates[rank], self.coordinates[other]
        return all(here[axis] == there[axis] for axis in axes)

    def holder_in_copy_of(self, owner: int, axes: Axes, rank: int) -> int:
        """Return the rank with the shard of `rank` in the owner's copy of a parameter."""
        here, there = self.coordinates[rank], self.coordinates[owner]
        return self.holders.rank_at[tuple(there[i] if i in axes else c for i, c in enumerate(here))]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of parameters, options, mesh and owners; equal on processes that agree on them."""
        placed = str((self.ranks or tuple(range(self.size)), self.coordinates, self.base_loads))
        text = "\n".join((*map(str, self.params), str(self.options), placed, str(self.owners)))
        return hashlib.sha256(text.encode()).hexdigest()
