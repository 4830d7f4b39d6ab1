"""`ShardedPlan`: owner and order of every matrix of a step on many processes, decided beforehand.

It is made of shapes, layouts and rules alone, and nothing is measured: equal on every process.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from polarlight.execution.sharded import assignment
from polarlight.execution.sharded.bucketing import Buckets, Charge, Charges, sum_by_account
from polarlight.execution.sharded.kinds import HolderTable, MatrixKind, matrices_and_kinds
from polarlight.execution.sharded.layouts import Coordinate
from polarlight.execution.sharded.node_sharing import (
    OwnerAssignment,
    SharedMatrix,
    assign_owners,
    cost_with_sums,
    transfer_cost,
)
from polarlight.execution.sharded.options import Options
from polarlight.execution.sharded.rowwise import RowwiseSums, choose_rowwise, param_rowwise_cost
from polarlight.execution.sharded.specs import MATRIX, MatrixSpec, ParamSpec
from polarlight.execution.sharded.topology import MeshAxes, Topology


@dataclass(frozen=True)
class ShardedPlan:
    """Owners and order of all matrices of some parameters.

    Attributes:
        params: The parameters.
        coordinates: Mesh coordinate of every process, by rank in the group.
        options: Limits and thresholds.
        ranks: Global rank of every process, by rank in the group; by default the same.
        base_loads: Load of every process by parameters on other meshes, in flops; by default none.
        later_load: Mean load of a process by parameters on meshes that are planned later, in flops.
    """

    params: Sequence[ParamSpec]
    coordinates: Sequence[Coordinate]
    options: Options
    ranks: Sequence[int] = ()
    base_loads: Sequence[float] = ()
    later_load: float = 0.0

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self.coordinates)

    @cached_property
    def rowwise(self) -> dict[int, RowwiseSums]:
        """{param number: sums} of parameters computed on their shards of rows, without owner."""
        return choose_rowwise(self.params, self.options.row_bytes, self.options.sum_weight)

    @cached_property
    def _assignment(self) -> OwnerAssignment:
        """Matrices that have an owner (of shared ones their parts), with kinds and owners."""
        owned = [(i, spec) for i, spec in enumerate(self.params) if i not in self.rowwise]
        return assign_owners(
            *matrices_and_kinds(owned, self.holders),
            self.options,
            self.ranks or range(self.size),
            self._rowwise_load[0],
            self.later_load,
        )

    @property
    def matrices(self) -> list[MatrixSpec]:
        """Every matrix that has an owner, in the order of parameters and their views.

        In place of a shared one, its parts.
        """
        return self._assignment.matrices

    @property
    def kinds(self) -> list[MatrixKind]:
        """`MatrixKind` (cost, bytes, holders) of each matrix, in the order of `matrices`."""
        return self._assignment.kinds

    @property
    def owners(self) -> list[int]:
        """Rank of the process that computes each matrix."""
        return self._assignment.owners

    @property
    def shared(self) -> list[SharedMatrix]:
        """Matrices that processes of a node compute together, each a part."""
        return self._assignment.shared

    @cached_property
    def holders(self) -> HolderTable:
        """Processes by mesh coordinate, and the holders of blocks."""
        return HolderTable(self.coordinates)

    @cached_property
    def _rowwise_load(self) -> tuple[list[float], list[int]]:
        """(costs, flops) of row-wise parameters, two lists by rank; costs include `base_loads`."""
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
        """Flops of each entry of `matrices`; those of a matrix's part include its reductions."""
        return [cost_with_sums(kind, self.options) for kind in self.kinds]

    @cached_property
    def topology(self) -> Topology:
        """Groups of processes that exchange messages: with an owner, per hop, between copies."""
        return Topology(self.coordinates, self.ranks or range(self.size), self.options.peers)

    @cached_property
    def transfer_costs(self) -> list[float]:
        """Cost in flops of sending each matrix to an owner that does not hold it, and back."""
        return [transfer_cost(kind, self.options) for kind in self.kinds]

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

    @cached_property
    def flops(self) -> list[int]:
        """Flops of products and decompositions per process, owned and row-wise."""
        total = list(self._rowwise_load[1])
        for kind, owner in zip(self.kinds, self.owners, strict=True):
            total[owner] += kind.flops
        return total

    @cached_property
    def buckets(self) -> list[list[int]]:
        """Lists of numbers of matrices exchanged together, at most `bucket_bytes` per process.

        In each owner's queue, matrices that it holds in full come first: there is something to
        compute while the others are received. Larger ones come before smaller ones, and shared ones
        before all, with all parts in one bucket. A bucket is
        bounded for owners, for processes that hold parts, and for those that pass them on.
        """
        nbytes, buckets = [kind.nbytes for kind in self.kinds], Buckets(self.options.bucket_bytes)
        charges = Charges(self.topology, self.kinds)

        def taken(number: int) -> list[Charge]:
            """Return (account, bytes) pairs that a matrix takes of its bucket's limit."""
            gathers, returns = self.gathered[number], self.returned[number]
            kind, owner = self.kinds[number], self.owners[number]
            return charges.of_matrix(kind, owner, gathers=gathers, returns=returns)

        # Shared ones are computed by several processes at a time: first of all.
        for matrix in sorted(self.shared, key=lambda m: (-nbytes[m.numbers[0]], m.numbers)):
            buckets.add(matrix.numbers, sum_by_account(map(taken, matrix.numbers)), 0)
        queues: list[list[int]] = [[] for _ in range(self.size)]
        for number, owner in enumerate(self.owners):
            if self.matrices[number].part is None:
                queues[owner].append(number)
        for queue in queues:
            bucket = 0
            for number in sorted(queue, key=lambda n: (self.gathered[n], -nbytes[n], n)):
                bucket = buckets.add((number,), taken(number), bucket)
        return [sorted(bucket) for bucket in buckets.numbers if bucket]

    @cached_property
    def gathered(self) -> list[bool]:
        """Per matrix: True if its owner lacks some of its entries or of its buffers' entries."""
        return [
            not kind.has_all(owner) for kind, owner in zip(self.kinds, self.owners, strict=True)
        ]

    @cached_property
    def returned(self) -> list[bool]:
        """Per matrix: True if its owner sends results to other processes of its copy.

        One whose owner holds it in full may have buffers on others: two numbers of a single row.
        """
        cut = [spec.layouts[MATRIX].cuts_matrices for spec in self.params]
        return [
            gathered or cut[matrix.param]
            for matrix, gathered in zip(self.matrices, self.gathered, strict=True)
        ]

    def replicated_of(self, matrix_number: int) -> MeshAxes:
        """Return the mesh dimensions along which a matrix is replicated."""
        return self.kinds[matrix_number].replicated

    @cached_property
    def fingerprint(self) -> str:
        """Hash of parameters, options, mesh, owners, other loads; equal on processes that agree."""
        text = "\n".join((*map(str, self.params), *self.fingerprint_texts))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def fingerprint_texts(self) -> tuple[str, str, str]:
        """Hashed texts: options, mesh with other loads, owners with shared matrices."""
        loads = self.base_loads, self.later_load
        placed = str((self.ranks or tuple(range(self.size)), self.coordinates, loads))
        return str(self.options), placed, str((self.owners, self.shared))
