"""The search for a learning rate: any training that takes a rate and gives a loss.

The sweep goes on beyond its end while the best rate is the last one on that side. What was measured
is kept in a file, a line per rate, so that a search that was interrupted goes on where it was.
"""

import json
import sys
from collections.abc import Callable, Iterable
from math import inf, isfinite
from pathlib import Path

from polarlight.lab.tuning.sweep import Edge, Sweep

Train = Callable[[float], float]
"""Trains anew with a learning rate, always from the same start; the loss at the end."""

Follow = Callable[[float, float, int, int], None]
"""Told of each result: the rate, its loss, how many are done and how many are planned."""


def announce(lr: float, loss: float, done: int, planned: int) -> None:
    """A line on stderr for each result."""
    print(f"find_lr {done}/{planned}: lr {lr:.4g}, loss {loss:.4g}", file=sys.stderr, flush=True)


def find_lr(
    train: Train,
    rates: Iterable[float],
    *,
    extend: int = 3,
    record: Path | None = None,
    follow: Follow = announce,
) -> Sweep:
    """Train with each rate and, while the best is at an end of the sweep, with rates beyond it.

    Args:
        train: Takes a learning rate, trains from the same start each time, returns the loss at the
            end; a loss that is not finite counts as infinite. Prefer a loss on data that was held
            out and an average over seeds.
        rates: Where to start, best in equal ratios; any order.
        extend: Rates beyond the ends at most, in the ratio of the last two; 0 tries `rates` alone.
        record: File of results, {"lr": ..., "loss": ...} a line; rates that are in it are not
            trained again. Delete it when the training changes.
        follow: Told of each result.

    Returns:
        The sweep; `optimum` says if its best rate is still at an end.

    Raises:
        ValueError: If a rate is not positive, there are fewer than two, extend is negative, or
            every run diverged.

    Examples:
        >>> found = find_lr(lambda lr: (lr - 0.03) ** 2, [0.01, 0.02, 0.04], follow=lambda *_: None)
        >>> round(found.optimum.lr, 3)
        0.028
    """
    search = Search(rates, extend=extend)
    known = {} if record is None else _read(record)
    while due := search.due():
        for lr in due:
            search.tell(lr, known[lr] if lr in known else _measured(train, lr, record))
            follow(lr, search.found[lr], len(search.found), len(search.planned))
    return search.sweep


class Search:
    """A sweep that is asked which rates to train next, for runs that train side by side.

    Args:
        rates: Where to start, best in equal ratios; any order.
        extend: Rates beyond the ends at most, in the ratio of the last two; 0 tries `rates` alone.

    Attributes:
        planned: Rates that are measured or due, ascending.
        found: Losses that were told, by rate.

    Raises:
        ValueError: If a rate is not positive, there are fewer than two, or extend is negative.

    Examples:
        >>> search = Search([0.01, 0.02], extend=1)
        >>> while due := search.due():
        ...     for lr in due:
        ...         search.tell(lr, abs(lr - 0.04))
        >>> search.sweep.rates
        (0.01, 0.02, 0.04)
    """

    def __init__(self, rates: Iterable[float], *, extend: int = 3) -> None:
        self.planned = sorted(set(rates))
        if len(self.planned) < 2 or not self.planned[0] > 0 or not isfinite(self.planned[-1]):
            raise ValueError(f"find_lr takes two rates or more, all > 0, got {self.planned}")
        if extend < 0:
            raise ValueError(f"extend must be >= 0, got {extend}")
        self.found: dict[float, float] = {}
        self._extend = extend

    def due(self) -> list[float]:
        """Return the rates to train next; once all are told the one beyond an end that is best."""
        missing = [lr for lr in self.planned if lr not in self.found]
        if missing or not self._extend:
            return missing
        beyond = _beyond(self.found)
        if beyond is None:
            return []
        self.planned, self._extend = sorted([*self.planned, beyond]), self._extend - 1
        return [beyond]

    def tell(self, lr: float, loss: float) -> None:
        """Keep the loss of a rate; one that is not finite counts as infinite."""
        self.found[lr] = loss if isfinite(loss) else inf

    @property
    def sweep(self) -> Sweep:
        """All losses that were told; raises ValueError if every run diverged."""
        return Sweep.of(self.found)


def _measured(train: Train, lr: float, record: Path | None) -> float:
    """The loss of a new run, written down before anything else happens."""
    loss = float(train(lr))
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"lr": lr, "loss": loss}) + "\n")
    return loss


def _beyond(found: dict[float, float]) -> float | None:
    """The next rate outside, if the best one is at an end; after divergence only the lower one."""
    rates = sorted(found)
    if all(not isfinite(loss) for loss in found.values()):
        return rates[0] ** 2 / rates[1]
    sweep = Sweep.of(found)
    if sweep.edge is Edge.LOW:
        return rates[0] ** 2 / rates[1]
    return rates[-1] ** 2 / rates[-2] if sweep.edge is Edge.HIGH else None


def _read(record: Path) -> dict[float, float]:
    """Read losses of an earlier search; drop a last line that is incomplete.

    Raises:
        ValueError: If a line before it is no result.
    """
    if not record.exists():
        return {}
    text = record.read_text(encoding="utf-8")
    *lines, rest = text.split("\n")
    if rest:
        record.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    found: dict[float, float] = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            lr, loss = float(entry["lr"]), float(entry["loss"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{record}, line {number} is no result; move the file away") from error
        found[lr] = loss if isfinite(loss) else inf
    return found
