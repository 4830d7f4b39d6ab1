"""Time of `AutoPolar` on a CPU by dtype, by size of the pieces of a batch, and by panels.

    python -m benchmarks.cpu_polar
    python -m benchmarks.cpu_polar --shapes 48x64x256,1x768x768 --repeats 9

Variants take turns, A B C A B C, and the table shows medians in milliseconds and ratios to the
first: float32 as it ships, bfloat16, batches in one piece, symmetric products by panels of 128 rows
and by panels from a side of 256 on. Needs a quiet machine.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch

from benchmarks.command_line import recorded_command
from polarlight.lab.train.environment import hardware, versions
from polarlight.linalg import AutoPolar, iterated, products

SHAPES = "48x8x32,48x64x256,48x128x128,48x128x512,4x384x384,8x1024x512,1x768x768,1x3072x768"

VARIANTS: dict[str, tuple[torch.dtype, dict[str, int]]] = {
    "float32": (torch.float32, {}),
    "bfloat16": (torch.bfloat16, {}),
    "one piece": (torch.float32, {"PIECE": 2**40}),
    "panels of 128": (torch.float32, {"PANEL": 128}),
    "panels from 256": (torch.float32, {"PANELS_FROM": 256}),
}
"""Dtype and constants of `linalg` of each variant."""


@contextmanager
def constants(values: dict[str, int]) -> Iterator[None]:
    """Give constants of `iterated` and `products` other values."""
    modules = [m for name in values for m in (iterated, products) if hasattr(m, name)]
    patches = [patch.object(m, n, v) for m, (n, v) in zip(modules, values.items(), strict=True)]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def compared(shape: tuple[int, ...], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each variant for one batch [b, m, n]."""
    generator = torch.Generator().manual_seed(0)
    M = torch.randn(shape, generator=generator) * torch.logspace(0, -2, shape[-1])
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(repeats + 1):  # the first one warms up
        for name, (dtype, values) in VARIANTS.items():
            engine = AutoPolar(dtype=dtype)
            with constants(values):
                start = time.perf_counter()
                engine(M)
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(some[1:]) for name, some in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", default=SHAPES, help="batches as BxMxN, by commas")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    found = {}
    for text in options.shapes.split(","):
        found[text] = compared(tuple(map(int, text.split("x"))), options.repeats)
        first = found[text]["float32"]
        cells = (f"{name} {ms / first:.2f}" for name, ms in found[text].items())
        print(f"{text}: {first:.3g} ms,", ", ".join(cells), flush=True)
    if options.out:
        about = {
            "command": recorded_command("benchmarks.cpu_polar", sys.argv[1:]),
            "versions": versions(),
            "hardware": hardware(torch.device("cpu")),
        }
        options.out.write_text(json.dumps({**about, "milliseconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
