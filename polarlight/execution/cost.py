"""Cost of a direction: the rule runs once per shape on the meta device (`linalg/cost.py`)."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from polarlight.linalg.cost import counted
from polarlight.linalg.row_sums import NeedsAllRowsError, Rows
from polarlight.rule import HOST_COUNTER, UpdateRule

FLOPS_PER_ENTRY = 300.0
"""Worth of reading and writing an entry, in flops of a product: what accelerators are built for."""


@lru_cache(maxsize=4096)
def flops(rule: UpdateRule, m: int, n: int) -> int:
    """Return the flops of products and decompositions in one direction of an m x n matrix."""
    if not m or not n:
        return 0
    M, buffers = _without_data(rule, m, n)
    return round(counted(lambda: rule.direction(M, buffers), m, n).flops)


def cost(rule: UpdateRule, m: int, n: int) -> float:
    """Return the flops, and what the passes over memory are worth in flops: never zero."""
    return flops(rule, m, n) + FLOPS_PER_ENTRY * m * n


@dataclass(frozen=True, slots=True)
class OnRows:
    """Cost of a direction for a process that has some of a matrix's rows.

    Attributes:
        flops: Of products and decompositions.
        cost: The same in the unit of `cost`.
        summed: Bytes of the sums that all holders complete together.
    """

    flops: int
    cost: float
    summed: int


@lru_cache(maxsize=4096)
def cost_on_rows(rule: UpdateRule, m: int, n: int, here: int) -> OnRows | None:
    """Return the cost of `here` rows of an m x n matrix.

    None if the rule needs more of the other rows than sums.
    """
    X, buffers = _without_data(rule, m, n, here)
    rows = _Counting(m)
    try:
        flops = round(counted(lambda: rule.direction_on_rows(X, rows, buffers), here, n).flops)
    except NeedsAllRowsError:
        return None
    return OnRows(flops, flops + FLOPS_PER_ENTRY * here * n, rows.bytes)


class _Counting(Rows):
    """Rows of a matrix of `total` rows, which count what is summed."""

    def __init__(self, total: int) -> None:
        self.total, self.bytes = total, 0

    def count(self, X: Tensor) -> int:
        return self.total

    def sum(self, x: Tensor) -> Tensor:
        self.bytes += x.nbytes
        return x

    def max(self, x: Tensor) -> Tensor:
        return self.sum(x)


def _without_data(
    rule: UpdateRule, m: int, n: int, here: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a matrix and its buffers on the meta device, or `here` of its rows and theirs."""
    rows = m if here is None else here
    buffers = {
        name: torch.zeros(
            (rows if p == m else p, q), device="cpu" if name == HOST_COUNTER else "meta"
        )
        for name, (p, q) in rule.buffer_shapes(torch.Size((m, n))).items()
    }
    return torch.empty(rows, n, device="meta"), buffers
