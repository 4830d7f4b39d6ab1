"""Choice of the matrices that processes of a node compute together, and owners of all others.

Where matrices are fewer than processes, the owner of the costliest one is the busiest process. A
rule that needs sums over rows alone can run on blocks of rows, on columns for wide matrices: each
of several processes of a node gathers a block, computes its direction, and all-reduces sums with
the others. They repeat the work on the Gram matrix. Numbers alone, equal on every process.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heapify, heapreplace
from operator import itemgetter

import torch

from polarlight.execution.cost import cost
from polarlight.execution.sharded import assignment
from polarlight.execution.sharded.kinds import MatrixKind, part_cost
from polarlight.execution.sharded.options import Options
from polarlight.execution.sharded.specs import MATRIX, MatrixPart, MatrixSpec, ParamSpec
from polarlight.linalg.rest import SIZES

WORTH = 0.9
"""Largest load, relative to that of one owner per matrix, for which matrices are shared."""

MOST_TRIALS = 4
"""Candidates for which owners are found; those with the lowest bounds come first."""


@dataclass(frozen=True, slots=True)
class SharedMatrix:
    """Matrix that several processes of a node compute together.

    Attributes:
        numbers: Numbers of its parts in the plan, in the order of their rows or columns.
        ranks: Rank in the mesh of the process that computes each part.
    """

    numbers: tuple[int, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OwnerAssignment:
    """Matrices, and parts of shared ones, with their owners.

    Attributes:
        matrices: Matrices and parts, in the order of parameters and their views.
        kinds: Kind of each.
        owners: Rank of the process that computes each.
        shared: Matrices of which `matrices` has the parts.
    """

    matrices: list[MatrixSpec]
    kinds: list[MatrixKind]
    owners: list[int]
    shared: list[SharedMatrix]


def node_groups(ranks: Sequence[int], node_size: int, count: int) -> list[tuple[int, ...]]:
    """Return disjoint groups of `count` mesh ranks, each within one node; the rest is left out.

    Args:
        ranks: Global rank of every process, by rank in the mesh.
        node_size: Processes of a node, neighbours by global rank.
        count: Processes of a group.
    """
    nodes: dict[int, list[int]] = {}
    for rank in sorted(range(len(ranks)), key=ranks.__getitem__):
        nodes.setdefault(ranks[rank] // node_size, []).append(rank)
    return [
        tuple(node[first : first + count])
        for node in nodes.values()
        for first in range(0, len(node) - count + 1, count)
    ]


def parts_of(matrix: MatrixSpec, count: int, *, by_columns: bool) -> list[MatrixSpec]:
    """Return `count` parts of ceil(length / count) rows or columns; the last may have fewer.

    Buffers as long are cut with it. All parts have the whole of the others.
    """
    m, n = matrix.shapes[MATRIX]
    dim, long = (-1, n) if by_columns else (-2, m)
    size = -(-long // count)
    common = _common_buffers(matrix, by_columns)
    parts = []
    for place in range(count):
        start, length = place * size, min(size, long - place * size)
        blocks = {
            name: block if name in common else block.part(dim, start, length)
            for name, block in matrix.blocks.items()
        }
        shapes = {name: blocks[name].size for name in blocks.keys() - common}
        part = MatrixPart((m, n), place, count, by_columns, common)
        parts.append(replace(matrix, blocks=blocks, shapes={**matrix.shapes, **shapes}, part=part))
    return parts


def _common_buffers(matrix: MatrixSpec, by_columns: bool) -> frozenset[str]:
    """Return the names of the buffers that every part has in full, as they are not cut."""
    dim = -1 if by_columns else -2
    long = matrix.shapes[MATRIX][dim]
    return frozenset(n for n, shape in matrix.shapes.items() if n == SIZES or shape[dim] != long)


def _long_side_parts(matrix: MatrixSpec, count: int) -> list[MatrixSpec]:
    """Return `count` parts of a matrix: rows of a tall one, columns of a wide one."""
    m, n = matrix.shapes[MATRIX]
    return parts_of(matrix, count, by_columns=n > m)


def can_be_shared(kind: MatrixKind, count: int, least_bytes: int) -> bool:
    """Return whether a matrix has `least_bytes` and can be computed as `count` blocks.

    That takes a rule which needs sums alone, tensors whose last two dimensions are those of the
    matrix, no empty block, and momenta of at least `least_bytes`.
    """
    spec, matrix = kind.spec, kind.matrix
    m, n = matrix.shapes[MATRIX]
    if m == n or matrix.counter is not None or -(-max(m, n) // count) * (count - 1) >= max(m, n):
        return False
    if m * n * spec.dtypes[MATRIX].itemsize < least_bytes:
        return False
    for name in matrix.blocks.keys() - _common_buffers(matrix, n > m):
        block = matrix.blocks[name]
        if not block.is_plain or block.size != matrix.shapes[name]:
            return False
    return part_cost(spec.rule, _long_side_parts(matrix, count)[0]) is not None


def cost_with_sums(kind: MatrixKind, options: Options) -> float:
    """Return the cost in flops of one direction; of a part, its all-reduced sums included."""
    price = options.flops_per_byte * options.node_sum_weight
    return kind.cost + 2 * price * kind.sum_bytes


def transfer_cost(kind: MatrixKind, options: Options) -> float:
    """Return the cost in flops of gathering a matrix or part on its owner and sending it back."""
    return 2 * options.flops_per_byte * kind.nbytes


def mean_load(specs: Sequence[ParamSpec], processes: int, options: Options) -> float:
    """Return an estimate of the mean load, in flops, of `processes` by these parameters."""
    total = 0.0
    for spec in specs:
        shape = torch.Size(spec.layouts[MATRIX].shape)
        if not shape.numel():
            continue
        for part in spec.view.shapes(shape):
            total += part[:-2].numel() * cost(spec.rule, *part[-2:])
        if spec.layouts[MATRIX].cuts_matrices:
            moved = shape.numel() * spec.dtypes[MATRIX].itemsize
            total += 2 * options.flops_per_byte * moved
    return total / processes


def assign_owners(
    matrices: Sequence[MatrixSpec],
    kinds: Sequence[MatrixKind],
    options: Options,
    ranks: Sequence[int],
    base_loads: Sequence[float],
    later_load: float = 0.0,
) -> OwnerAssignment:
    """Assign owners; cut costly matrices in parts on a node if the largest load falls by 10 %.

    A candidate is a number of processes and a cost: they share each matrix that costs as much or
    more. Matrices below the mean load have one owner.

    Args:
        matrices: All matrices that need an owner.
        kinds: Kind of each.
        options: Limits and thresholds of the plan.
        ranks: Global rank of every process, by rank in the mesh.
        base_loads: Load of every process besides these matrices, in flops.
        later_load: Mean load of a process, in flops, by parameters that are planned later.
    """
    search = _SharingSearch(matrices, kinds, options, ranks, base_loads, later_load)
    best = search.trial()
    candidates = sorted(search.candidates(), key=itemgetter(0, 1, 2))
    limit = WORTH * best.busiest if candidates else 0.0
    for bound, _, count, shared in candidates[:MOST_TRIALS]:
        if bound >= limit:
            break
        trial = search.trial(count, shared)
        if trial.busiest < limit:
            best, limit = trial, trial.busiest
    return search.assemble(best)


class _SharingSearch:
    """Search for the matrices that are shared; arguments as in `assign_owners`."""

    def __init__(
        self,
        matrices: Sequence[MatrixSpec],
        kinds: Sequence[MatrixKind],
        options: Options,
        ranks: Sequence[int],
        base_loads: Sequence[float],
        later_load: float,
    ) -> None:
        """Keep the arguments; nothing is assigned yet."""
        self.matrices, self.kinds, self.options = matrices, kinds, options
        self.ranks, self.base_loads, self.later_load = ranks, base_loads, later_load
        self._parts: dict[tuple[MatrixKind, int], list[MatrixKind]] = {}
        self._known_prices: dict[MatrixKind, tuple[float, float]] = {}

    def candidates(self) -> Iterator[tuple[float, int, int, set[MatrixKind]]]:
        """Yield (lower bound of the largest load, parts, processes per matrix, shared kinds)."""
        numbers = Counter(self.kinds)
        least = {kind: self._least_load(kind) for kind in numbers}
        total = sum(self.base_loads) + len(self.ranks) * self.later_load
        mean = (total + sum(least[kind] * n for kind, n in numbers.items())) / len(self.ranks)
        costly = [kind for kind in numbers if least[kind] > mean]
        for count in range(2, self.options.node_size + 1) if costly else ():
            size = self.options.node_size
            if size % count or not node_groups(self.ranks, size, count):
                continue
            some = [k for k in costly if can_be_shared(k, count, self.options.row_bytes)]
            for threshold in {least[kind] for kind in some}:
                shared = {kind for kind in some if least[kind] >= threshold}
                loads = {kind: [load] for kind, load in least.items()}
                loads.update((kind, self._least_part_loads(kind, count)) for kind in shared)
                work = sum(n * sum(loads[kind]) for kind, n in numbers.items())
                largest = max(max(some_loads) for some_loads in loads.values())
                parts = count * sum(n for kind, n in numbers.items() if kind in shared)
                yield max(largest, (total + work) / len(self.ranks)), parts, count, shared

    def trial(self, count: int = 1, shared: Collection[MatrixKind] = ()) -> "_Trial":
        """Assign matrices of `shared` kinds to groups of `count` processes, others to owners."""
        loads = list(self.base_loads)
        groups = self._assign_shared(count, shared, loads) if shared else {}
        alone = [number for number in range(len(self.kinds)) if number not in groups]
        kinds = [self.kinds[number] for number in alone]
        owners = assignment.owners(
            [self.prices(kind)[0] for kind in kinds],
            [kind.whole_holders for kind in kinds],
            len(self.ranks),
            self.options.spread,
            loads,
            [self.prices(kind)[1] for kind in kinds],
            [kind.part_holders for kind in kinds],
        )
        return _Trial(self, count, groups, dict(zip(alone, owners, strict=True)), loads)

    def _assign_shared(
        self, count: int, shared: Collection[MatrixKind], loads: list[float]
    ) -> dict[int, tuple[int, ...]]:
        """Return {number: ranks} of each matrix of the shared kinds; add their parts to `loads`.

        Costly ones come first, each to the group of which the busiest process is least loaded.
        """
        groups = node_groups(self.ranks, self.options.node_size, count)
        places = assignment.spread_out(len(groups))
        heap = [
            (max(loads[rank] for rank in group), place, group)
            for group, place in zip(groups, places, strict=True)
        ]
        heapify(heap)
        part_loads = {kind: max(self._least_part_loads(kind, count)) for kind in shared}
        numbers = [number for number, kind in enumerate(self.kinds) if kind in shared]
        found: dict[int, tuple[int, ...]] = {}
        for number in sorted(numbers, key=lambda n: (-part_loads[self.kinds[n]], n)):
            _, place, group = heap[0]
            parts = self._parts_of(self.kinds[number], count)
            # Rotate the group so that most parts are local. If none is, rotate it in turn: the same
            # rows of all matrices are in the same first-hop groups, which pass messages on by the
            # owner's place in its group, and one order for all would leave that to a few. The turn
            # is hashed (Fibonacci), as groups come in turn too: in step some places stay idle.
            orders = [group[k:] + group[:k] for k in range(len(group))]
            local = [sum(map(self.is_local, parts, order)) for order in orders]
            turn = (len(found) * 0x9E3779B1 >> 16) % len(group)
            found[number] = orders[local.index(max(local)) if any(local) else turn]
            for part, rank in zip(parts, found[number], strict=True):
                cost, moved = self.prices(part)
                loads[rank] += cost if self.is_local(part, rank) else cost + moved
            heapreplace(heap, (max(loads[rank] for rank in group), place, group))
        return found

    def assemble(self, trial: "_Trial") -> OwnerAssignment:
        """Return a trial's matrices in order (of shared ones the parts) with kinds and owners."""
        found = OwnerAssignment([], [], [], [])
        for number, (matrix, kind) in enumerate(zip(self.matrices, self.kinds, strict=True)):
            if number in trial.owners:
                found.matrices.append(matrix)
                found.kinds.append(kind)
                found.owners.append(trial.owners[number])
                continue
            first, group = len(found.matrices), trial.groups[number]
            found.matrices.extend(_long_side_parts(matrix, trial.count))
            found.kinds.extend(self._parts_of(kind, trial.count))
            found.owners.extend(group)
            numbers = tuple(range(first, first + trial.count))
            found.shared.append(SharedMatrix(numbers, group))
        return found

    def is_local(self, kind: MatrixKind, owner: int) -> bool:
        """Return whether process `owner` holds all of a matrix or part and of its buffers."""
        holders = kind.whole_holders
        return (holders is None or owner in holders) and kind.has_all(owner)

    def prices(self, kind: MatrixKind) -> tuple[float, float]:
        """Return (cost, transfer cost) of a matrix or part in flops; cached per kind."""
        if kind not in self._known_prices:
            moved = transfer_cost(kind, self.options)
            self._known_prices[kind] = cost_with_sums(kind, self.options), moved
        return self._known_prices[kind]

    def _least_load(self, kind: MatrixKind) -> float:
        """Return a matrix's or part's load in flops, with its transfer if no process holds all."""
        cost, moved = self.prices(kind)
        return cost + moved if kind.whole_holders == () else cost

    def _least_part_loads(self, kind: MatrixKind, count: int) -> list[float]:
        """Return `_least_load` of each of the `count` parts of a kind's matrix."""
        return [self._least_load(part) for part in self._parts_of(kind, count)]

    def _parts_of(self, kind: MatrixKind, count: int) -> list[MatrixKind]:
        """Return the kinds of the `count` parts of a kind's matrices, in order; cached."""
        if (kind, count) not in self._parts:
            parts = _long_side_parts(kind.matrix, count)
            self._parts[kind, count] = [MatrixKind(kind.spec, p, kind.table) for p in parts]
        return self._parts[kind, count]


@dataclass(frozen=True)
class _Trial:
    """Owners under one candidate.

    Attributes:
        search: Kinds, costs and options.
        count: Processes that share a matrix.
        groups: Ranks of those that share each shared matrix, by its number.
        owners: Owner of every other matrix, by its number.
        loads: Load of every process besides the matrices of `owners`.
    """

    search: _SharingSearch
    count: int
    groups: Mapping[int, tuple[int, ...]]
    owners: Mapping[int, int]
    loads: Sequence[float]

    @cached_property
    def busiest(self) -> float:
        """Largest load in flops, transfers included; at least the mean plus the later load.

        Processes that hold whole matrices send those that others own: bytes count for them too.
        Where few hold all experts, a shared matrix would drive more experts from their holders.
        """
        loads, sent = list(self.loads), [0.0] * len(self.loads)
        for number, owner in self.owners.items():
            kind = self.search.kinds[number]
            cost, moved = self.search.prices(kind)
            if self.search.is_local(kind, owner):
                moved = 0.0
            elif kind.whole_holders:
                sent[next(iter(kind.shares(owner)))] += moved
            loads[owner] += cost + moved
        busiest = max(load + more for load, more in zip(loads, sent, strict=True))
        return max(busiest, sum(loads) / len(loads) + self.search.later_load)
