"""Which matrices stay where their rows lie, because sums over rows cost less than moving them.

Row norms need a few numbers of the other rows, polar factors of tall matrices their n x n Gram
matrix: an embedding of 128,256 x 4,096 has 1 GB in bfloat16, one of its Gram matrices 36 MB. Pure
integers, the same on every process.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

from polarlight.execution.cost import OnRows, cost_on_rows
from polarlight.execution.sharded.units import MOMENTUM, Item
from polarlight.view import Whole


@dataclass(frozen=True, slots=True)
class Stay:
    """A parameter that stays.

    Attributes:
        axes: Dimensions of the mesh that cut its rows; sums go along them.
        sent: Bytes that a process sends, and receives, for its sums in a step.
    """

    axes: tuple[int, ...]
    sent: int


def staying(items: Sequence[Item], row_bytes: int, sum_weight: float) -> dict[int, Stay]:
    """Parameters that stay where their rows lie, by number.

    One that moves fewer bytes so, over all processes, stays. Others stay, those with most bytes per
    byte of sums first, as long as the busiest process moves less for it: on many processes a single
    large matrix makes its owner the busiest, and everybody takes part in sums.
    """
    travelling = [_travelling(item) for item in items]
    possible = {}
    for number, item in enumerate(items):
        stay = _possible(item, row_bytes)
        if stay is not None:
            possible[number] = stay
    weighed = {number: sum_weight * 2 * stay.sent for number, stay in possible.items()}
    chosen = {n for n, sums in weighed.items() if sums < travelling[n].share}
    rest = sorted(possible.keys() - chosen, key=lambda n: (-_worth(travelling[n], weighed[n]), n))
    moved = [t for n, t in enumerate(travelling) if n not in possible]
    chosen |= set(rest[: _best([travelling[n] for n in rest], [weighed[n] for n in rest], moved)])
    return {number: possible[number] for number in sorted(chosen)}


@dataclass(frozen=True, slots=True)
class _Travelling:
    """Bytes sent and received for a parameter whose matrices travel.

    Attributes:
        share: By a process, were all owners equally busy.
        owner: By the owner of one of its matrices.
    """

    share: float
    owner: float


def _travelling(item: Item) -> _Travelling:
    """Shards to the owners, directions to all who keep them."""
    layout = item.layouts[MOMENTUM]
    size = sum(prod(lay.shape) * item.dtypes[name].itemsize for name, lay in item.layouts.items())
    processes = prod(layout.mesh)
    shards = processes // layout.copies
    all_sent = size * (1 - 1 / shards) + size * (layout.copies - 1 / shards)
    return _Travelling(2 * all_sent / processes, all_sent / max(1, prod(layout.shape[:-2])))


def _possible(item: Item, row_bytes: int) -> Stay | None:
    """What staying would take; None where it cannot be."""
    layout = item.layouts[MOMENTUM]
    axes = layout.cut_by_rows
    large = prod(layout.shape) * item.dtypes[MOMENTUM].itemsize >= row_bytes
    if not axes or not large or item.view != Whole() or not _buffers_lie_with_rows(item):
        return None
    found = on_rows(item, max(1, layout.shape[-2] // prod(layout.mesh[a] for a in axes)))
    if found is None:
        return None
    once = found.summed * prod(layout.shape[:-2])
    return Stay(axes, sum(int(2 * once * (1 - 1 / layout.mesh[axis])) for axis in axes))


def _buffers_lie_with_rows(item: Item) -> bool:
    """Return whether every buffer is cut as the rows are, or is everybody's."""
    layout = item.layouts[MOMENTUM]
    return all(
        not any(other.splits)
        or (other.splits == layout.splits and other.shape[-2] == layout.shape[-2])
        for other in item.layouts.values()
    )


def on_rows(item: Item, here: int) -> OnRows | None:
    """What one matrix of a parameter costs a process that has `here` of its rows."""
    return cost_on_rows(item.rule, *item.layouts[MOMENTUM].shape[-2:], here)


def _worth(travelling: _Travelling, sums: float) -> float:
    return travelling.share / sums if sums else float("inf")


def _best(rest: Sequence[_Travelling], sums: Sequence[float], moved: Iterable[_Travelling]) -> int:
    """How many of the rest stay for the busiest process to move least.

    It moves what its own largest matrix needs or the mean, whichever is more, and all sums.
    """
    paid = list(accumulate(sums, initial=0.0))
    busiest = list(_busiest([*rest], moved))
    return min(range(len(rest) + 1), key=lambda count: paid[count] + busiest[count])


def _busiest(rest: Sequence[_Travelling], moved: Iterable[_Travelling]) -> Iterator[float]:
    """What the busiest process moves for matrices that travel, were the first 0, 1, ... to stay."""
    largest, mean = 0.0, 0.0
    for t in moved:
        largest, mean = max(largest, t.owner), mean + t.share
    found = [max(largest, mean)]
    for t in reversed(rest):
        largest, mean = max(largest, t.owner), mean + t.share
        found.append(max(largest, mean))
    return reversed(found)
