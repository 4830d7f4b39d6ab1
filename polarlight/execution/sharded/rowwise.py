"""Choice of the parameters that are computed row-wise: on their shards of rows, without an owner.

A rule that needs sums over rows alone (row norms, or the n x n Gram matrix of a tall one) can run
on each shard and all-reduce the sums. An embedding of 128,256 x 4,096 has 1 GB in bfloat16, one of
its Gram matrices 36 MB. Integers alone, equal on every process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from polarlight.execution.cost import PartCost, rowwise_cost
from polarlight.execution.sharded.specs import MATRIX, ParamSpec
from polarlight.view import Whole


@dataclass(frozen=True, slots=True)
class RowwiseSums:
    """Reductions of a parameter that is computed on its shards of rows.

    Attributes:
        row_axes: Mesh dimensions that cut its rows; sums are reduced along them.
        sent: Bytes that a process sends, and receives, for its sums in a step.
    """

    row_axes: tuple[int, ...]
    sent: int


@dataclass(frozen=True, slots=True)
class _GatherBytes:
    """Bytes sent and received for a parameter whose matrices are gathered on owners.

    Attributes:
        share: Bytes per process, were all owners equally busy.
        owner: Bytes of the owner of one of its matrices.
    """

    share: float
    owner: float


def choose_rowwise(
    params: Sequence[ParamSpec], row_bytes: int, sum_weight: float
) -> dict[int, RowwiseSums]:
    """Return {index: sums} of params >= `row_bytes` for which sums move less than gathering.

    1. A parameter is, if that moves fewer bytes, summed over all processes.
    2. Of the others, those with the most gathered bytes per byte of sums are, as long as the
       busiest process moves fewer bytes for it. On many processes one large matrix makes its owner
       the busiest one, while every process takes part in sums.
    """
    gather = [_gather_bytes(spec) for spec in params]
    possible = {
        number: rowwise
        for number, rowwise in enumerate(_possible_rowwise(spec, row_bytes) for spec in params)
        if rowwise is not None
    }
    sums = {number: sum_weight * 2 * rowwise.sent for number, rowwise in possible.items()}
    chosen = {n for n, weighed in sums.items() if weighed < gather[n].share}
    # Of the others: most gathered bytes per byte of sums first.
    ratio = {n: gather[n].share / sums[n] if sums[n] else float("inf") for n in possible}
    others = sorted(possible.keys() - chosen, key=lambda n: (-ratio[n], n))
    always = [bytes_ for n, bytes_ in enumerate(gather) if n not in possible]
    count = _best_count([gather[n] for n in others], [sums[n] for n in others], always)
    chosen |= set(others[:count])
    return {number: possible[number] for number in sorted(chosen)}


def _gather_bytes(spec: ParamSpec) -> _GatherBytes:
    """Return the bytes that a parameter's matrices take to be gathered on owners and sent back."""
    layout = spec.layouts[MATRIX]
    size = sum(prod(lay.shape) * spec.dtypes[name].itemsize for name, lay in spec.layouts.items())
    processes = prod(layout.mesh)
    shards = processes // layout.copies
    # An owner holds 1 / shards itself; it receives the rest once and sends it to every copy.
    total = size * (1 - 1 / shards) + size * (layout.copies - 1 / shards)
    return _GatherBytes(2 * total / processes, total / max(1, prod(layout.shape[:-2])))


def _possible_rowwise(spec: ParamSpec, row_bytes: int) -> RowwiseSums | None:
    """Return a parameter's sums if row-wise; None if below `row_bytes` or it cannot be."""
    layout = spec.layouts[MATRIX]
    # Mesh dimensions that cut the rows; none may cut another dimension of the tensor.
    cuts = {axis: split.dim for axis, split in enumerate(layout.splits) if split is not None}
    row_axes = tuple(cuts) if set(cuts.values()) == {len(layout.shape) - 2} else ()
    large = prod(layout.shape) * spec.dtypes[MATRIX].itemsize >= row_bytes
    if not row_axes or not large or spec.view != Whole():
        return None
    # Every buffer has to be cut as the rows are, or replicated.
    if not all(
        not any(other.splits)
        or (other.splits == layout.splits and other.shape[-2] == layout.shape[-2])
        for other in spec.layouts.values()
    ):
        return None
    local_rows = max(1, layout.shape[-2] // prod(layout.mesh[a] for a in row_axes))
    found = param_rowwise_cost(spec, local_rows)
    if found is None:
        return None
    summed = found.summed * prod(layout.shape[:-2])
    # A ring all-reduce sends 2 (1 - 1/p) times its bytes, along each mesh dimension.
    sent = sum(int(2 * summed * (1 - 1 / layout.mesh[axis])) for axis in row_axes)
    return RowwiseSums(row_axes, sent)


def param_rowwise_cost(spec: ParamSpec, local_rows: int) -> PartCost | None:
    """Return the cost of a direction on `local_rows` of each matrix; None if it needs all rows."""
    return rowwise_cost(spec.rule, *spec.layouts[MATRIX].shape[-2:], local_rows)


def _best_count(
    candidates: Sequence[_GatherBytes],
    sum_bytes: Sequence[float],
    always_gathered: Sequence[_GatherBytes],
) -> int:
    """Return k: with candidates[:k] row-wise (sum_bytes per candidate), the busiest moves least.

    The busiest process moves the sums of these k, and of what is gathered the larger of its own
    largest matrix and the mean over processes.

    Args:
        candidates: Parameters that could be row-wise, in the order in which they become so: what is
            gathered for each if it is not.
        sum_bytes: What is moved for the sums of each if it is, times `sum_weight`.
        always_gathered: Parameters that cannot be row-wise.
    """
    largest = max((g.owner for g in always_gathered), default=0.0)
    mean = sum((g.share for g in always_gathered), 0.0)
    paid = [0.0]  # paid[k]: sums of the first k
    for amount in sum_bytes:
        paid.append(paid[-1] + amount)
    busiest = [max(largest, mean)]  # built from the last: all are row-wise, then one fewer, ...
    for g in reversed(candidates):
        largest, mean = max(largest, g.owner), mean + g.share
        busiest.append(max(largest, mean))
    busiest.reverse()  # busiest[k]: the first k are row-wise
    return min(range(len(candidates) + 1), key=lambda k: paid[k] + busiest[k])
