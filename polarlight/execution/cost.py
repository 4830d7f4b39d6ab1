"""Cost of a direction: flops of one run of the rule on the meta device (`linalg/cost.py`)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from polarlight.linalg.cost import counted, note_summed
from polarlight.linalg.rest import SIZES
from polarlight.linalg.row_sums import NeedsAllRowsError, Rows
from polarlight.rule import HOST_COUNTER, UpdateRule

FLOPS_PER_ENTRY = 300.0
"""Flops of products that take an accelerator as long as reading and writing one entry."""


@lru_cache(maxsize=4096)
def flops(rule: UpdateRule, m: int, n: int) -> int:
    """Return the flops of products and decompositions in a direction of an m x n matrix; cached."""
    if not m or not n:
        return 0
    M, buffers = _meta_inputs(rule, m, n)
    return round(counted(lambda: rule.direction(M, buffers), m, n).flops)


def cost(rule: UpdateRule, m: int, n: int) -> float:
    """Return the flops of an m x n matrix's direction, plus 300 per entry for memory passes."""
    return flops(rule, m, n) + FLOPS_PER_ENTRY * m * n


@dataclass(frozen=True, slots=True)
class PartCost:
    """Cost of a direction for a process that holds some rows, or columns, of the matrix.

    Attributes:
        flops: Flops of products and decompositions.
        cost: Flops and memory passes, in the unit of `cost`.
        summed: Bytes of the sums that are all-reduced over the processes.
    """

    flops: int
    cost: float
    summed: int


@lru_cache(maxsize=4096)
def rowwise_cost(rule: UpdateRule, m: int, n: int, local_rows: int) -> PartCost | None:
    """Return the cost of a direction on `local_rows` of m rows; None if the rule needs all."""
    X, buffers = _meta_inputs(rule, m, n, local_rows=local_rows)
    return _part_cost(lambda: rule.direction_on_rows(X, _CountedRows(m), buffers), X)


@lru_cache(maxsize=4096)
def columnwise_cost(rule: UpdateRule, m: int, n: int, local_columns: int) -> PartCost | None:
    """Return the cost of a direction on `local_columns` of n columns; None if it needs all."""
    X, buffers = _meta_inputs(rule, m, n, local_columns=local_columns)
    return _part_cost(lambda: rule.direction_on_columns(X, _CountedRows(n), buffers), X)


def _part_cost(direction_of_part: Callable[[], Tensor], X: Tensor) -> PartCost | None:
    """Run `direction_of_part` (of X), return its cost; None if it needs the whole matrix."""
    try:
        count = counted(direction_of_part, *X.shape)
    except NeedsAllRowsError:
        return None
    flops = round(count.flops)
    return PartCost(flops, flops + FLOPS_PER_ENTRY * X.numel(), round(count.summed))


class _CountedRows(Rows):
    """Row reductions without processes: each returns its input and counts its bytes."""

    def __init__(self, total: int) -> None:
        """Keep the number of rows of the whole matrix."""
        self.total = total

    def count(self, X: Tensor) -> int:
        """Return the number of rows of the whole matrix, not of X."""
        return self.total

    def sum(self, x: Tensor) -> Tensor:
        """Return x unchanged; add its bytes to the all-reduced bytes being counted."""
        note_summed(x)
        return x

    def max(self, x: Tensor) -> Tensor:
        """Return x unchanged; add its bytes to the all-reduced bytes being counted."""
        return self.sum(x)


def _meta_inputs(
    rule: UpdateRule,
    m: int,
    n: int,
    *,
    local_rows: int | None = None,
    local_columns: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return an uninitialized [local_rows or m, local_columns or n] and {buffer: zeros}, on meta.

    Host counters are on the CPU.
    """
    rows = m if local_rows is None else local_rows
    columns = n if local_columns is None else local_columns
    buffers = {
        name: torch.zeros(
            (rows if p == m else p, columns if q == n and name != SIZES else q),
            device="cpu" if name == HOST_COUNTER else "meta",
        )
        for name, (p, q) in rule.buffer_shapes(torch.Size((m, n))).items()
    }
    return torch.empty(rows, columns, device="meta"), buffers
