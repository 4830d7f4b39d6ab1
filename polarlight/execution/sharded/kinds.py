"""Kinds of matrices: equal rule, shape and dtypes, held alike by the same processes.

A model has few kinds of matrices and many matrices of each. What a plan asks of a matrix (its cost,
its bytes, who holds how much of it) is found once for each kind.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import product

from polarlight.execution.cost import PartCost, columnwise_cost, cost, flops, rowwise_cost
from polarlight.execution.sharded.layouts import Coordinate, CoordinatePattern, Layout
from polarlight.execution.sharded.regions import StridedBlock, overlap
from polarlight.execution.sharded.specs import MATRIX, MatrixSpec, ParamSpec, matrix_specs
from polarlight.execution.sharded.topology import MeshAxes, replicated_axes
from polarlight.rule import UpdateRule

Entries = Mapping[int, int]
"""Number of entries of a block that each of its holders has, by rank."""


class HolderTable:
    """Processes of a mesh by coordinate, and the holders of blocks of tensors.

    Args:
        coordinates: Mesh coordinate of every process, by rank.
    """

    def __init__(self, coordinates: Sequence[Coordinate]) -> None:
        """Index the ranks by coordinate; the caches are empty."""
        self.coordinates = coordinates
        self.rank_at = {where: rank for rank, where in enumerate(coordinates)}
        self._ranks: dict[tuple[CoordinatePattern, Coordinate], tuple[int, ...]] = {}
        self._entries: dict[object, Entries] = {}

    def ranks_at(self, pattern: CoordinatePattern, mesh: Coordinate) -> tuple[int, ...]:
        """Return the ranks of processes whose coordinate in a mesh of this shape fits a pattern."""
        if (pattern, mesh) not in self._ranks:
            by_axis = zip(pattern, mesh, strict=True)
            every = product(*(range(n) if p is None else (p,) for p, n in by_axis))
            self._ranks[pattern, mesh] = tuple(map(self.rank_at.__getitem__, every))
        return self._ranks[pattern, mesh]

    def entries(self, layout: Layout, block: StridedBlock) -> Entries:
        """Return {rank: number of a block's entries that it holds} under a layout; cached."""
        key = layout, cut_of(layout, block)
        if key not in self._entries:
            self._entries[key] = {
                rank: count
                for pattern in layout.coordinates_of(block.ranges, whole=False)
                for count in [overlap(block, layout.held(tuple(i or 0 for i in pattern)))]
                for rank in self.ranks_at(pattern, layout.mesh)
            }
        return self._entries[key]


def cut_of(layout: Layout, block: StridedBlock) -> tuple[tuple[int, int, int], ...]:
    """Return a block's (start, step, length) per dimension; (0, 1, length) where it is not cut.

    Blocks of equal cuts have the same holders.
    """
    cut = {split.dim for split in layout.splits if split is not None}
    every = zip(block.starts, block.steps, block.lengths, strict=True)
    return tuple(
        (start if dim in cut else 0, step if dim in cut else 1, length)
        for dim, (start, step, length) in enumerate(every)
    )


Shares = Mapping[int, tuple[int, int]]
"""Bytes that each holder of a matrix and its buffers sends to the owner, and gets back, by rank."""


class MatrixKind:
    """Cost, bytes and holders that all matrices of one kind have in common.

    Args:
        spec: One of their parameters.
        matrix: One of them.
        table: Processes of the mesh.
    """

    def __init__(self, spec: ParamSpec, matrix: MatrixSpec, table: HolderTable) -> None:
        """Find replicated axes and bytes; the rest is computed when it is first asked for."""
        self.spec, self.matrix, self.table = spec, matrix, table
        layout = spec.layouts[MATRIX]
        self.replicated: MeshAxes = replicated_axes(layout)
        self.nbytes = sum(
            block.numel * spec.dtypes[name].itemsize for name, block in matrix.blocks.items()
        )
        self._shares: dict[Coordinate, dict[int, tuple[int, int]]] = {}
        # Tensors of which not only copies are replicated: the two numbers per matrix of a rule.
        self._per_matrix = {
            name for name in matrix.blocks if replicated_axes(spec.layouts[name]) != self.replicated
        }
        self.per_matrix_bytes = sum(
            matrix.blocks[name].numel * spec.dtypes[name].itemsize for name in self._per_matrix
        )

    @cached_property
    def cost(self) -> float:
        """Cost of one direction, or of the part, in flops with memory passes, without sums."""
        part = self._part_cost
        return part.cost if part else cost(self.spec.rule, *self.matrix.shapes[MATRIX])

    @cached_property
    def flops(self) -> int:
        """Flops of products and decompositions in one direction, or in a part of it."""
        part = self._part_cost
        return part.flops if part else flops(self.spec.rule, *self.matrix.shapes[MATRIX])

    @cached_property
    def sum_bytes(self) -> int:
        """Bytes that a part's owner sends to all-reduce sums over all parts; 0 for a whole one."""
        part, found = self.matrix.part, self._part_cost
        return int(2 * found.summed * (1 - 1 / part.count)) if part and found else 0

    @cached_property
    def _part_cost(self) -> PartCost | None:
        """Cost of this part of a matrix; None for a whole one, or if the rule needs all of it."""
        return part_cost(self.spec.rule, self.matrix)

    @cached_property
    def entries(self) -> dict[str, Entries]:
        """{name: {rank: number of entries}} of the matrix and every buffer on each holder."""
        blocks = self.matrix.blocks.items()
        return {name: self.table.entries(self.spec.layouts[name], b) for name, b in blocks}

    @cached_property
    def whole_holders(self) -> tuple[int, ...] | None:
        """Processes that hold the matrix in full; None if it is replicated on all of them."""
        layout, table = self.spec.layouts[MATRIX], self.table
        if layout.copies == len(table.coordinates):
            return None
        patterns = layout.coordinates_of(self.matrix.blocks[MATRIX].ranges, whole=True)
        return tuple(rank for p in patterns for rank in table.ranks_at(p, layout.mesh))

    @cached_property
    def part_holders(self) -> tuple[int, ...] | None:
        """Processes that hold a part of the matrix; None if that is all of them."""
        some = self.entries[MATRIX]
        return tuple(some) if len(some) < len(self.table.coordinates) else None

    def has_all(self, rank: int) -> bool:
        """Return whether a process holds every entry of the matrix and of its buffers."""
        blocks = self.matrix.blocks
        return all(some.get(rank, 0) == blocks[n].numel for n, some in self.entries.items())

    def shares(self, owner: int) -> Shares:
        """Return {rank: (bytes to owner, bytes back)} of all holders in the owner's copy.

        What is only read is sent to the owner, and not back.
        """
        if not self._shares:
            for name, some in self.entries.items():
                size = self.spec.dtypes[name].itemsize
                sent = size if name not in self._per_matrix else 0
                back = size if self.matrix.is_written(name) else 0
                if not sent and not back:
                    continue
                for rank, count in some.items():
                    of_copy = self._shares.setdefault(self._copy_coordinate(rank), {})
                    gathered, scattered = of_copy.get(rank, (0, 0))
                    of_copy[rank] = gathered + count * sent, scattered + count * back
        return self._shares.get(self._copy_coordinate(owner), {})

    def extra_gathered(self, owner: int) -> list[tuple[int, int]]:
        """Return (sender, bytes) of each buffer, replicated in the copy, that the owner lacks.

        One process sends it: the holder at the owner's coordinate along the replicated dimensions.
        """
        found = []
        for name in self._per_matrix:
            layout = self.spec.layouts[name]
            block, size = self.matrix.blocks[name], self.spec.dtypes[name].itemsize
            for pattern in layout.coordinates_of(block.ranges, whole=False):
                by_axis = zip(pattern, self.table.coordinates[owner], strict=True)
                rank = self.table.rank_at[tuple(c if p is None else p for p, c in by_axis)]
                if rank != owner:
                    found.append((rank, self.entries[name][rank] * size))
        return found

    def sends(self, name: str, rank: int, owner: int) -> bool:
        """Return whether holder `rank` sends tensor `name` to the owner; of replicas one does."""
        if name not in self._per_matrix:
            return True
        layout, where = self.spec.layouts[name], self.table.coordinates
        return layout.copy_index(where[rank]) == layout.copy_index(where[owner])

    def _copy_coordinate(self, rank: int) -> Coordinate:
        """Return a process's coordinates along the mesh dimensions that replicate the matrix."""
        if not self.replicated:
            return ()
        where = self.table.coordinates[rank]
        return tuple(where[axis] for axis in self.replicated)


def part_cost(rule: UpdateRule, matrix: MatrixSpec) -> PartCost | None:
    """Return the cost of the part that `matrix` is; None if it is whole, or the rule needs that."""
    if (part := matrix.part) is None:
        return None
    rows, columns = matrix.shapes[MATRIX]
    if part.by_columns:
        return columnwise_cost(rule, *part.shape, columns)
    return rowwise_cost(rule, *part.shape, rows)


def matrices_and_kinds(
    params: Sequence[tuple[int, ParamSpec]], table: HolderTable
) -> tuple[list[MatrixSpec], list[MatrixKind]]:
    """Return all matrices of (number, parameter) pairs in order, and the kind of each one."""
    matrices: list[MatrixSpec] = []
    kinds: list[MatrixKind] = []
    known: dict[object, list[tuple[ParamSpec, list[MatrixSpec], list[MatrixKind]]]] = {}
    for number, spec in params:
        key = id(spec.rule), tuple(spec.layouts.items()), tuple(spec.dtypes.items())
        alike = known.setdefault(key, [])
        found = next((entry for entry in alike if entry[0].view == spec.view), None)
        if found is None:
            own = list(matrix_specs(number, spec))
            found = spec, own, _kinds_of(spec, own, table)
            alike.append(found)
        _, own, of_each = found
        matrices += [
            m if m.param == number else MatrixSpec(number, m.blocks, m.shapes, m.counter)
            for m in own
        ]
        kinds += of_each
    return matrices, kinds


def _kinds_of(
    spec: ParamSpec, matrices: Sequence[MatrixSpec], table: HolderTable
) -> list[MatrixKind]:
    """Return the kind of each matrix of a parameter; equal cuts and shapes share one."""
    known: dict[object, MatrixKind] = {}
    kinds = []
    for matrix in matrices:
        cuts = tuple(cut_of(spec.layouts[name], block) for name, block in matrix.blocks.items())
        key = cuts, tuple(matrix.shapes.values())
        if key not in known:
            known[key] = MatrixKind(spec, matrix, table)
        kinds.append(known[key])
    return kinds
