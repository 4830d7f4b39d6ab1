"""Cost of products on a device, as far as the choice of an engine depends on it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from polarlight.linalg.cost import Count
from polarlight.linalg.products import PANELS_FROM, gram
from polarlight.lookup import arguments_checked


@arguments_checked
@dataclass(frozen=True, slots=True)
class Rates:
    """Costs relative to a plain product of the same shape.

    Attributes:
        discount: Cost of a symmetric product, for sides from `symmetric_from` on; in (0, 1].
        symmetric_from: Least side for which symmetric products are cheaper.
        gram_from: Least short side for which the Gram form is considered at all: below it, more
            and smaller products only mean more launches.
    """

    discount: float = 1.0
    symmetric_from: int = PANELS_FROM
    gram_from: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must lie in (0, 1], got {self.discount}")

    def symmetric(self, side: int) -> float:
        """Return the cost of a symmetric product of this side, relative to a plain one."""
        return self.discount if side >= self.symmetric_from else 1.0

    def priced(self, count: Count, side: int) -> float:
        """Return the flops of a count, its symmetric products of this side at their discount."""
        return count.flops - (1 - self.symmetric(side)) * count.symmetric

    @classmethod
    def measured(cls, device: torch.device | str, dtype: torch.dtype) -> "Rates":
        """Time a few products of `dtype` on `device`: under a second, once per process."""
        return _measured(torch.device(device), dtype)


def assumed_rates(device_type: str) -> Rates:
    """Return what is known of the kind of device; `Rates.measured` measures."""
    return Rates(discount=0.72) if device_type == "cpu" else Rates(gram_from=257)


@lru_cache
def _measured(device: torch.device, dtype: torch.dtype, side: int = 768, repeats: int = 7) -> Rates:
    W = torch.ones(side, 2 * side, device=device, dtype=dtype)
    symmetric = _seconds(lambda: gram(W), device, repeats)
    plain = _seconds(lambda: W @ W.mT, device, repeats)
    assumed = assumed_rates(device.type)
    return Rates(min(1.0, symmetric / plain), assumed.symmetric_from, assumed.gram_from)


def _seconds(product: Callable[[], Tensor], device: torch.device, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        product()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]
