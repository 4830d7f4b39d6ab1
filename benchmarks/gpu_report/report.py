"""Report of a GPU: settings and results that all parts share, and the limit of their time."""

import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Found = dict[str, Any]
"""Results of a part, filled while it runs."""


class OutOfTimeError(BaseException):
    """The time of a part is over; not an `Exception`, which parts and torch catch as failures."""


@dataclass
class Report:
    """Settings and results that all parts of the report share.

    Attributes:
        device: Where steps run.
        tiny: Small shapes and few repeats.
        data: Folder with FineWeb shards for the training part, or None.
        until: `time.monotonic()` at which the report must be done.
        parts: Results by name.
    """

    device: torch.device
    tiny: bool
    data: Path | None
    until: float
    parts: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds that are left, of the shortest limit that is in force."""
        return min([self.until, *_deadlines]) - time.monotonic()

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)

    def run(self, name: str, part: Callable[["Report", Found], None], seconds: float) -> None:
        """Run a part for at most some seconds; keep what it found, or its failure."""
        if self.left <= 0:
            self.parts[name] = {"left_out": "no time left"}
            return
        start, found = time.monotonic(), {}
        kept = self.parts[name] = {"seconds": 0.0, "result": found}
        found |= within(min(seconds, self.left), part, self, found) or {}
        kept["seconds"] = round(time.monotonic() - start, 1)
        print(name, json.dumps(found)[:400], flush=True)


_deadlines: list[float] = []
"""Ends of the limits in force, by `time.monotonic()`."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError within it once the seconds are over; limits may be nested.

    Rings every second from then on: what swallows one alarm gets the next. A call that holds the
    interpreter, such as a wait for the device, is stopped when it returns.
    """
    _deadlines.append(time.monotonic() + seconds)
    _set_alarm()
    try:
        yield
    finally:
        _deadlines.pop()
        _set_alarm()


def _set_alarm() -> None:
    """Set the timer to the first deadline; without one, switch it off."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    if _deadlines:
        signal.signal(signal.SIGALRM, _out_of_time)
        left = min(_deadlines) - time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3), 1.0)


def _out_of_time(*_: object) -> None:
    raise OutOfTimeError


def tried(function: Callable[..., Any], *args: Any) -> Any:
    """Return the function's result, or what failed in it."""
    try:
        return function(*args)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return {"failed": f"{type(error).__name__}: {error}"[:400], "where": place}


def within(seconds: float, function: Callable[..., Any], *args: Any) -> Any:
    """Return the function's result, what failed in it, or that its time was over."""
    try:
        with time_limit(seconds):
            return tried(function, *args)
    except OutOfTimeError:
        if _deadlines and min(_deadlines) <= time.monotonic():
            raise  # an outer limit's
        return {"out_of_time": f"stopped after {seconds:.1f} s"}


def parameters(
    shapes: list[tuple[int, int]], device: torch.device, dtype: torch.dtype = torch.float32
) -> list[nn.Parameter]:
    """Return matrices with gradients, equal on all devices."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for m, n in shapes:
        W, G = (torch.randn(m, n, generator=generator) for _ in range(2))
        rows = (0.5 * torch.randn(m, 1, generator=generator)).exp()
        p = nn.Parameter((0.02 * W).to(device, dtype))
        p.grad = (G * rows).to(device, dtype)
        made.append(p)
    return made


def moved(params: list[nn.Parameter], start: list[Tensor]) -> list[Tensor]:
    """Return how far parameters went from their start, on the CPU."""
    return [p.detach().float().cpu() - s.float().cpu() for p, s in zip(params, start, strict=True)]


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest relative Frobenius distance of two lists of matrices."""
    pairs = zip(ours, theirs, strict=True)
    return max(((x - y).norm() / y.norm().clamp_min(1e-30)).item() for x, y in pairs)
