"""Times of the parts of a step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class PartTimer:
    """Seconds per part, summed until they are read.

    Args:
        device: A CUDA device is waited for at both ends of a part, so that its work counts there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time the block as `part`."""
        start = self._now()
        try:
            yield
        finally:
            self.add(part, self._now() - start)

    def add(self, part: str, seconds: float) -> None:
        """Add seconds to a part; negative ones subtract."""
        self._parts[part] = self._parts.get(part, 0.0) + seconds

    @property
    def pending(self) -> float:
        """Return all seconds that were not read yet."""
        return sum(self._parts.values())

    def take(self) -> dict[str, float]:
        """Return the sums and reset them."""
        parts, self._parts = self._parts, {}
        return parts

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
