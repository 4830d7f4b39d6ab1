"""Python functions of the package that a step calls, per matrix and in all.

    python -m benchmarks.python_calls

Tiny matrices take no time to compute; a step on them is what everything else costs. Calls are
counted, not timed: comprehensions and generators count as calls where Python makes frames for them
(3.11; newer versions inline most of them). Prints a table.
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import polarlight as pl
from benchmarks.launches import ours

SHAPES = [(8, 32), (32, 8), (8, 8), (4, 16)]
PACKAGE = str(Path(pl.__file__).parent)


def calls(make: Callable[[Any], Any], matrices: int) -> Counter[str]:
    """Return how often the third step of an optimizer calls each function of the package.

    Args:
        make: Makes the optimizer.
        matrices: Number of its parameters, divisible by 4.
    """
    params = [nn.Parameter(torch.randn(shape)) for shape in SHAPES * (matrices // len(SHAPES))]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = make(params)
    for _ in range(2):
        optimizer.step()
    return calls_of(optimizer.step)


def calls_of(function: Callable[[], Any]) -> Counter[str]:
    """Return how often a function calls each function of the package."""
    found = Counter[str]()

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            found[f"{code.co_filename.removeprefix(PACKAGE)[1:]}: {code.co_qualname}"] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return found


def per_matrix(make: Callable[[Any], Any]) -> float:
    """Return the calls that one more matrix costs."""
    return (calls(make, 200).total() - calls(make, 100).total()) / 100


def main() -> None:
    shown = Table("optimizer", "calls for 200 matrices", "per matrix", "most frequent")
    for name in ("Muon", "NorMuon", "Aurora", "SOAP"):
        found, more = calls(ours(name), 200), per_matrix(ours(name))
        often = ", ".join(f"{n} {where}" for where, n in found.most_common(3))
        shown.add_row(name, str(found.total()), f"{more:.1f}", often)
    Console(width=150).print(shown)


if __name__ == "__main__":
    main()
