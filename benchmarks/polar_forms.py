"""Time of the plain and the Gram form beside the choice of `AutoPolar`, interleaved.

    python -m benchmarks.polar_forms
    python -m benchmarks.polar_forms --shapes 704x512,2048x512 --dtype float32 --repeats 9

Each repeat runs one form and then the other, A B A B, and the table shows medians in milliseconds,
their ratio, the ratio of the priced operations, and the form that `AutoPolar` takes. Needs a quiet
machine: differences near the boundary are a few percent.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch

import polarlight as pl
from benchmarks.command_line import recorded_command
from polarlight.lab.train.environment import hardware, versions
from polarlight.linalg.auto import QUICK, cheapest_gram, priced
from polarlight.linalg.rates import assumed_rates

SHAPES = "704x512,768x512,5632x4096,1024x512,3072x768"
"""At the boundary, where the two forms' operations differ by a tenth at most, and beyond it."""


def compared(m: int, n: int, dtype: torch.dtype, repeats: int) -> dict[str, object]:
    """Return median milliseconds of both forms for one shape, and what the cost model says."""
    rates, cpu = assumed_rates("cpu"), torch.device("cpu")
    normalisation = pl.linalg.Schatten8()
    plain = pl.linalg.NewtonSchulz(QUICK, dtype, normalisation)
    gram = cheapest_gram(m, n, QUICK, dtype, rates)
    M = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {"plain": [], "gram": []}
    for _ in range(repeats + 1):  # the first one warms up
        for name, engine in (("plain", plain), ("gram", gram)):
            start = time.perf_counter()
            engine(M)
            times[name].append(1e3 * (time.perf_counter() - start))
    found = {name: median(some[1:]) for name, some in times.items()}
    modelled = priced(gram, m, n, rates) / priced(plain, m, n, rates)
    chosen = pl.linalg.AutoPolar(dtype=dtype).engine(m, n, torch.float32, cpu)
    return {
        "shape": f"{m}x{n}",
        **found,
        "measured ratio": found["gram"] / found["plain"],
        "modelled ratio": modelled,
        "chosen": "gram" if chosen == gram else "plain",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    rows = []
    for text in options.shapes.split(","):
        m, n = map(int, text.split("x"))
        rows.append(compared(m, n, dtype, options.repeats))
        cells = (f"{k} {v:.3g}" if isinstance(v, float) else v for k, v in rows[-1].items())
        print("  ".join(map(str, cells)))
    if options.out:
        about = {
            "command": recorded_command("benchmarks.polar_forms", sys.argv[1:]),
            "versions": versions(),
            "hardware": hardware(torch.device("cpu")),
        }
        options.out.write_text(json.dumps({**about, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
