"""Losses over learning rates, and the optimum that they show.

Near its least point a loss is a parabola in log lr: one is fitted by least squares to the least
loss and up to two rates on each side, as single runs are noisy and valleys flat. Where the least
loss is the first or the last of the sweep nothing is fitted, and the optimum says so (`edge`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import exp, inf, isfinite, log

import torch


class Edge(StrEnum):
    """Side of the sweep on which the optimum may lie outside."""

    LOW = "low"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class Optimum:
    """The learning rate with the least loss.

    Attributes:
        lr: Where the parabola is least, at most half way from the best rate to the next; or that.
        loss: The lesser of the parabola's least value and the best rate's loss.
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
        if known.edge is not None or inf in self.losses[i - 1 : i + 2]:
            return known
        places = self._near()
        x = [log(self.rates[j] / self.rates[i]) for j in places]
        found = _vertex(x, [self.losses[j] for j in places])
        if found is None:
            return known
        halfway = (
            log(self.rates[i - 1] / self.rates[i]) / 2,
            log(self.rates[i + 1] / self.rates[i]) / 2,
        )
        shift = min(max(found[0], halfway[0]), halfway[1])
        return Optimum(self.rates[i] * exp(shift), min(found[1], known.loss))

    def _near(self) -> list[int]:
        """Places of the best rate, its neighbours, and those beyond if a parabola may reach them.

        A parabola whose least point is nearest to the best rate rises two places away by no more
        than four times what it rises to the farther of its neighbours.
        """
        i, least = self.best, self.losses[self.best]
        limit = least + 4 * (max(self.losses[i - 1], self.losses[i + 1]) - least)
        beyond = [j for j in (i - 2, i + 2) if 0 <= j < len(self.rates)]
        return sorted([i - 1, i, i + 1, *(j for j in beyond if self.losses[j] <= limit)])

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
        """Return the distance to one side at which the loss exceeds the least by `slack`."""
        limit, i = self.losses[self.best] + slack, self.best
        while 0 <= i + step < len(self.rates) and self.losses[i + step] <= limit:
            i += step
        j = i + step
        if not 0 <= j < len(self.rates) or self.losses[j] == inf:
            return self.rates[i]
        part = (limit - self.losses[i]) / (self.losses[j] - self.losses[i])
        return exp(log(self.rates[i]) + part * log(self.rates[j] / self.rates[i]))


def _vertex(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """Return place and value of the least-squares parabola's minimum; None without one."""
    powers = torch.tensor(x, dtype=torch.float64)[:, None] ** torch.arange(3)
    values = torch.tensor(y, dtype=torch.float64)[:, None]
    c0, c1, c2 = torch.linalg.lstsq(powers, values).solution.flatten().tolist()
    return None if c2 <= 0 else (-c1 / (2 * c2), c0 - c1**2 / (4 * c2))
