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

    Example:
        >>> found = find_lr(lambda lr: (lr - 0.03) ** 2, [0.01, 0.02, 0.04], follow=lambda *_: None)
        >>> round(found.optimum.lr, 3)
        0.028
    """
    planned = sorted(set(rates))
    if len(planned) < 2 or not planned[0] > 0 or not isfinite(planned[-1]):
        raise ValueError(f"find_lr takes two rates or more, all > 0, got {planned}")
    if extend < 0:
        raise ValueError(f"extend must be >= 0, got {extend}")
    known = {} if record is None else _read(record)
    found: dict[float, float] = {}
    while True:
        for lr in planned:
            if lr not in found:
                found[lr] = known[lr] if lr in known else _measured(train, lr, record)
                follow(lr, found[lr], len(found), len(planned))
        beyond = _beyond(found) if extend else None
        if beyond is None:
            return Sweep.of(found)
        planned, extend = sorted([*planned, beyond]), extend - 1


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
