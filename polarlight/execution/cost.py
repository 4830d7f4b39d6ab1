"""Cost of a direction: flops of products, counted by one run of the rule on the meta device."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from polarlight.linalg.row_sums import NeedsAllRowsError, Rows
from polarlight.rule import HOST_COUNTER, UpdateRule

FLOPS_PER_ENTRY = 300.0
"""Flops of products that take an accelerator as long as reading and writing one entry."""

FLOPS_OF_A_FACTORISATION = 20.0
"""Estimate for a decomposition, in units of m n min(m, n): torch does not count its flops."""


@lru_cache(maxsize=4096)
def flops(rule: UpdateRule, m: int, n: int) -> int:
    """Count floating-point operations of the products in one direction of an m x n matrix.

    The rule runs on the meta device, where products are counted and nothing is computed. torch
    counts no flops for decompositions: a rule with one counts at least 20 m n min(m, n).
    """
    if not m or not n:
        return 0
    M, buffers = _meta_inputs(rule, m, n)
    return _count_flops(lambda: rule.direction(M, buffers), m, n)


def cost(rule: UpdateRule, m: int, n: int) -> float:
    """Return flops of products plus memory passes in the same unit; never zero."""
    return flops(rule, m, n) + FLOPS_PER_ENTRY * m * n


@dataclass(frozen=True, slots=True)
class RowwiseCost:
    """Cost of a direction for a process that holds some rows of the matrix.

    Attributes:
        flops: Flops of matrix products.
        cost: Flops and memory passes, in the unit of `cost`.
        summed: Bytes of the sums that are all-reduced over the processes.
    """

    flops: int
    cost: float
    summed: int


@lru_cache(maxsize=4096)
def rowwise_cost(rule: UpdateRule, m: int, n: int, local_rows: int) -> RowwiseCost | None:
    """Return the cost for a process with some rows of an m x n matrix; None if not row-wise."""
    X, buffers = _meta_inputs(rule, m, n, local_rows)
    rows = _CountingRows(m)
    try:
        flops = _count_flops(lambda: rule.direction_on_rows(X, rows, buffers), local_rows, n)
    except NeedsAllRowsError:
        return None
    return RowwiseCost(flops, flops + FLOPS_PER_ENTRY * local_rows * n, rows.bytes)


class _CountingRows(Rows):
    """Row reductions that return their input and count its bytes."""

    def __init__(self, total: int) -> None:
        self.total, self.bytes = total, 0

    def count(self, X: Tensor) -> int:
        """Return the number of rows of the whole matrix."""
        return self.total

    def sum(self, x: Tensor) -> Tensor:
        """Return the input as it is, and add its bytes to the count."""
        self.bytes += x.nbytes
        return x

    def max(self, x: Tensor) -> Tensor:
        """Return the input as it is, and add its bytes to the count."""
        return self.sum(x)


def _meta_inputs(
    rule: UpdateRule, m: int, n: int, local_rows: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a matrix and its buffers on the meta device; with `local_rows`, that many rows."""
    rows = m if local_rows is None else local_rows
    buffers = {
        name: torch.zeros(
            (rows if p == m else p, q), device="cpu" if name == HOST_COUNTER else "meta"
        )
        for name, (p, q) in rule.buffer_shapes(torch.Size((m, n))).items()
    }
    return torch.empty(rows, n, device="meta"), buffers


def _count_flops(direction: Callable[[], Tensor], m: int, n: int) -> int:
    """Count flops of products; estimate decompositions and functions that depend on data."""
    from torch.utils.flop_counter import FlopCounterMode

    estimate = int(FLOPS_OF_A_FACTORISATION * m * n * min(m, n))
    counter = FlopCounterMode(display=False)
    try:
        with counter, _DetectFactorisation() as found:
            direction()
    except (RuntimeError, NotImplementedError):  # it depends on data: no meta device
        return estimate
    return max(counter.get_total_flops(), estimate if found.any else 0)


class _DetectFactorisation(TorchDispatchMode):
    """Dispatch mode that records whether a decomposition is called."""

    any = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Record calls of torch.linalg and run the operation."""
        self.any |= "linalg" in str(func) and "norm" not in str(func)
        return func(*args, **(kwargs or {}))
