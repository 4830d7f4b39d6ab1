"""What a direction costs, counted and not guessed: the rule runs once per shape, without data."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from polarlight.linalg.row_sums import NeedsAllRowsError, Rows
from polarlight.rule import HOST_COUNTER, UpdateRule

FLOPS_PER_ENTRY = 300.0
"""Worth of reading and writing an entry, in flops of a product: what accelerators are built for."""

FLOPS_OF_A_FACTORISATION = 20.0
"""Times m n min(m, n), for decompositions, whose flops nobody counts."""


@lru_cache(maxsize=4096)
def flops(rule: UpdateRule, m: int, n: int) -> int:
    """Floating-point operations of the matrix products in one direction of an m x n matrix.

    Found by running the rule on the meta device, where products are counted and nothing is
    computed. Decompositions count nothing: a rule without products that is not elementwise either
    is taken for one, at 20 m n min(m, n).
    """
    if not m or not n:
        return 0
    M, buffers = _without_data(rule, m, n)
    return _counted(lambda: rule.direction(M, buffers), m, n)


def cost(rule: UpdateRule, m: int, n: int) -> float:
    """Flops, and what the passes over memory are worth in flops: never zero."""
    return flops(rule, m, n) + FLOPS_PER_ENTRY * m * n


@dataclass(frozen=True, slots=True)
class OnRows:
    """What a direction costs a process that has some of a matrix's rows.

    Attributes:
        flops: Of matrix products.
        cost: The same in the unit of `cost`.
        summed: Bytes of the sums that all holders complete together.
    """

    flops: int
    cost: float
    summed: int


@lru_cache(maxsize=4096)
def cost_on_rows(rule: UpdateRule, m: int, n: int, here: int) -> OnRows | None:
    """Of `here` rows of an m x n matrix; None if the rule needs more of the others than sums."""
    X, buffers = _without_data(rule, m, n, here)
    rows = _Counting(m)
    try:
        flops = _counted(lambda: rule.direction_on_rows(X, rows, buffers), here, n)
    except NeedsAllRowsError:
        return None
    return OnRows(flops, flops + FLOPS_PER_ENTRY * here * n, rows.bytes)


class _Counting(Rows):
    """Says how many rows there are, and counts what is summed."""

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
    """A matrix and its buffers on the meta device, or `here` of its rows and theirs."""
    rows = m if here is None else here
    buffers = {
        name: torch.zeros(
            (rows if p == m else p, q), device="cpu" if name == HOST_COUNTER else "meta"
        )
        for name, (p, q) in rule.buffer_shapes(torch.Size((m, n))).items()
    }
    return torch.empty(rows, n, device="meta"), buffers


def _counted(direction: Callable[[], Tensor], m: int, n: int) -> int:
    """Flops of the products; an estimate for decompositions and where data decides."""
    from torch.utils.flop_counter import FlopCounterMode

    estimate = int(FLOPS_OF_A_FACTORISATION * m * n * min(m, n))
    counter = FlopCounterMode(display=False)
    try:
        with counter, _Factorisations() as found:
            direction()
    except (RuntimeError, NotImplementedError):  # data decides what it does: no meta device
        return estimate
    return max(counter.get_total_flops(), estimate if found.any else 0)


class _Factorisations(TorchDispatchMode):
    """Notices decompositions."""

    any = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Notes linalg's names and goes on."""
        self.any |= "linalg" in str(func) and "norm" not in str(func)
        return func(*args, **(kwargs or {}))
