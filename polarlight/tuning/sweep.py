"""Losses over learning rates, and the optimum that they show.

Near its least point a loss is a parabola in log lr: one is laid through the least loss and its two
neighbours. Where the least loss is the first or the last of the sweep there is nothing to lay it
through, and the optimum says so (`edge`) instead of guessing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import exp, inf, isfinite, log


class Edge(StrEnum):
    """On which side of the sweep the optimum may lie outside."""

    LOW = "low"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class Optimum:
    """The learning rate with the least loss.

    Attributes:
        lr: Where the parabola is least, or the best rate that was tried.
        loss: The parabola's least value, or that rate's loss.
        edge: The side on which a better rate may lie outside the sweep; None inside.
    """

    lr: float
    loss: float
    edge: Edge | None = None

    def __str__(self) -> str:
        outside = f", or {'lower' if self.edge is Edge.LOW else 'higher'}" if self.edge else ""
        return f"lr {self.lr:.3g}{outside}: loss {self.loss:.4g}"


@dataclass(frozen=True, slots=True)
class Sweep:
    """One loss per learning rate, rates ascending; a run that diverged has an infinite loss.

    Attributes:
        rates: Learning rates, positive and all different.
        losses: What each of them led to; NaN is taken as infinite.

    Raises:
        ValueError: If there are no rates, one of them is not positive or occurs twice, there are
            more or fewer losses, or no loss is finite.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.rates or not all(isfinite(lr) and lr > 0 for lr in self.rates):
            raise ValueError(f"a sweep takes learning rates > 0, got {self.rates}")
        if list(self.rates) != sorted(set(self.rates)) or len(self.losses) != len(self.rates):
            raise ValueError(
                f"rates must ascend, each with one loss, got {self.rates} and {self.losses}"
            )
        tamed = tuple(loss if isfinite(loss) else inf for loss in self.losses)
        object.__setattr__(self, "losses", tamed)
        if min(tamed) == inf:
            raise ValueError(f"every run diverged, lr {self.rates[0]:g} too: try lower rates")

    @classmethod
    def of(cls, found: Mapping[float, float]) -> "Sweep":
        """The sweep of a mapping from rates to losses."""
        rates = tuple(sorted(found))
        return cls(rates, tuple(found[lr] for lr in rates))

    @property
    def best(self) -> int:
        """Place of the least loss; of equal ones the lowest rate's."""
        return self.losses.index(min(self.losses))

    @property
    def edge(self) -> Edge | None:
        """The side on which the least loss is the last one tried. A divergence is a bound too."""
        if self.best == 0:
            return Edge.LOW
        return Edge.HIGH if self.best == len(self.rates) - 1 else None

    @property
    def optimum(self) -> Optimum:
        """The best rate, between those that were tried where these have it in their middle."""
        i = self.best
        known = Optimum(self.rates[i], self.losses[i], self.edge)
        if known.edge is not None or self.losses[i + 1] == inf or self.losses[i - 1] == inf:
            return known
        return _vertex(
            [log(lr / self.rates[i]) for lr in self.rates[i - 1 : i + 2]],
            self.losses[i - 1 : i + 2],
            self.rates[i],
        )

    def within(self, slack: float) -> tuple[float, float]:
        """Lowest and highest rate whose loss is at most `slack` above the least that was found.

        Straight lines in log lr between the rates; never outside the sweep.

        Raises:
            ValueError: If slack is negative.
        """
        if not slack >= 0:
            raise ValueError(f"slack must be >= 0, got {slack}")
        return self._reach(-1, slack), self._reach(1, slack)

    def _reach(self, step: int, slack: float) -> float:
        """How far one can go to one side before the loss is too large."""
        limit, i = self.losses[self.best] + slack, self.best
        while 0 <= i + step < len(self.rates) and self.losses[i + step] <= limit:
            i += step
        j = i + step
        if not 0 <= j < len(self.rates) or self.losses[j] == inf:
            return self.rates[i]
        part = (limit - self.losses[i]) / (self.losses[j] - self.losses[i])
        return exp(log(self.rates[i]) + part * log(self.rates[j] / self.rates[i]))


def _vertex(x: list[float], y: tuple[float, ...], middle: float) -> Optimum:
    """The least point of the parabola through (x, y), x[1] = 0; y[1] is the least of the three."""
    left, right = (y[0] - y[1]) / x[0], (y[2] - y[1]) / x[2]
    bend = (right - left) / (x[2] - x[0])
    if bend <= 0:  # all three are equal
        return Optimum(middle, y[1])
    slope = left - bend * x[0]
    return Optimum(middle * exp(-slope / (2 * bend)), y[1] - slope**2 / (4 * bend))
