"""Numbers of a slot that move with the steps of its matrix.

Structural numbers of a rule are frozen; a `Ramp` in place of one is frozen too, and is read at the
calls that a stage has counted for its matrix. No scheduler has to know of it, checkpoints carry the
count, and a step without a gradient is none.
"""

from dataclasses import dataclass
from math import exp

import torch
from torch import Tensor

from polarlight.linalg.slot import Buffers
from polarlight.registry import registered


@registered("Ramp")
@dataclass(frozen=True, slots=True)
class Ramp:
    """A number that goes from `start` to `end` in a straight line between two steps.

    Args:
        start: Value up to step `first`.
        end: Value from step `last` on.
        first: Last step at the start, counted from 0.
        last: First step at the end, after `first`.

    Raises:
        ValueError: If `last` is not after `first`.

    Examples:
        >>> from polarlight.stages import Ramp
        >>> round(Ramp(0.2, 0.0, first=0, last=2000)(500), 6)
        0.15
    """

    start: float
    end: float
    first: int
    last: int

    def __post_init__(self) -> None:
        if not self.last > self.first >= 0:
            raise ValueError(
                f"a ramp needs 0 <= first < last, got first={self.first}, last={self.last}"
            )

    def __call__(self, step: float) -> float:
        """Return the value at a step, counted from 0."""
        done = min(max((step - self.first) / (self.last - self.first), 0.0), 1.0)
        return self.start + (self.end - self.start) * done

    def on_device(self, steps: Tensor) -> Tensor:
        """Return the values at these steps, in the shape of `steps`."""
        done = ((steps - self.first) / (self.last - self.first)).clamp(0, 1)
        return self.start + (self.end - self.start) * done

    def __str__(self) -> str:
        return f"{self.start:g} to {self.end:g} over steps {self.first} to {self.last}"


@registered("Logistic")
@dataclass(frozen=True, slots=True)
class Logistic:
    """A number that goes from near `start` to near `end` along a logistic curve.

        end + (start - end) / (1 + exp((step - middle) / width))

    Args:
        start: Value long before the middle.
        end: Value long after it.
        middle: Step, counted from 0, at which the value is the mean of both.
        width: Steps in which the remaining distance falls by e, late on; positive.
    """

    start: float
    end: float
    middle: float
    width: float

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"width must be > 0, got {self.width}")

    def __call__(self, step: float) -> float:
        """Return the value at a step, counted from 0."""
        return self.end + (self.start - self.end) / (1 + exp((step - self.middle) / self.width))

    def on_device(self, steps: Tensor) -> Tensor:
        """Return the values at these steps, in the shape of `steps`."""
        share: Tensor = torch.sigmoid((self.middle - steps) / self.width)
        return self.end + (self.start - self.end) * share

    def __str__(self) -> str:
        return f"{self.start:g} to {self.end:g} around step {self.middle:g}"


Moving = Ramp | Logistic
Number = float | Moving
"""A structural number, fixed or moving with the steps."""


def counter_shape(number: Number, name: str, shape: torch.Size) -> dict[str, torch.Size]:
    """Return the counter [..., 1, 1] of calls that a moving number needs; none for a fixed one."""
    return {name: torch.Size((*shape[:-2], 1, 1))} if isinstance(number, Moving) else {}


def counted(number: Number, name: str, buffers: Buffers) -> float | Tensor:
    """Return the number at this call, [..., 1, 1] if it moves, and count the call."""
    if not isinstance(number, Moving):
        return number
    value = number.on_device(buffers[name])
    buffers[name].add_(1)
    return value
