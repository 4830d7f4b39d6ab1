"""What a direction costs, counted and not guessed: the rule runs once per shape, without data."""

from functools import lru_cache

import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
    from torch.utils.flop_counter import FlopCounterMode

    if not m or not n:
        return 0
    M = torch.empty(m, n, device="meta")
    buffers = {
        name: torch.zeros(shape, device="cpu" if name == HOST_COUNTER else "meta")
        for name, shape in rule.buffer_shapes(M.shape).items()
    }
    estimate = int(FLOPS_OF_A_FACTORISATION * m * n * min(m, n))
    counter = FlopCounterMode(display=False)
    try:
        with counter, _Factorisations() as found:
            rule.direction(M, buffers)
    except (RuntimeError, NotImplementedError):  # data decides what it does: no meta device
        return estimate
    return max(counter.get_total_flops(), estimate if found.any else 0)


def cost(rule: UpdateRule, m: int, n: int) -> float:
    """Flops, and what the passes over memory are worth in flops: never zero."""
    return flops(rule, m, n) + FLOPS_PER_ENTRY * m * n


class _Factorisations(TorchDispatchMode):
    """Notices decompositions."""

    any = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Notes linalg's names and goes on."""
        self.any |= "linalg" in str(func) and "norm" not in str(func)
        return func(*args, **(kwargs or {}))
