"""Record of what engines do: on given spectra, and at both ends of their bands.

A record is one JSON file, written after each engine, so that an interrupted run continues where it
stopped. It belongs to one budget and one machine; an engine that has changed is measured anew.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polarlight.lab.accuracy.adversarial import (
    LARGE,
    SHAPES,
    Shape,
    Worst,
    largest,
    least_promised,
    search,
)
from polarlight.lab.accuracy.spectra import SPECTRA, Case, Engine, Sample, measure
from polarlight.linalg.band import Band

Entry = dict[str, Any]
"""Of one engine: `engine`, its repr; `cases`, what `measure` returns; `largest` and `least`."""

LONG = {"count": 16, "rounds": 3}
"""Budget of the search in shapes of `LARGE`."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Effort of a run.

    Attributes:
        size: Short side of the matrices with a given spectrum.
        matrices: Matrices per family and shape of the search.
        rounds: Steps of the climb.
        large: Whether to search matrices of up to 128 x 128 too.
    """

    size: int = 128
    matrices: int = 64
    rounds: int = 30
    large: bool = False

    def searches(self) -> Iterator[tuple[Shape, dict[str, int]]]:
        """Return the shapes to search, with what `search` takes for each."""
        for shape in SHAPES:
            yield shape, {"count": self.matrices, "rounds": self.rounds}
        if self.large:
            yield from ((shape, LONG) for shape in LARGE)


def measured(
    engines: Mapping[str, Engine],
    budget: Budget,
    machine: Mapping[str, str],
    path: Path,
    track: Callable[[list[str]], Any] = iter,
) -> dict[str, Entry]:
    """Measure the engines that `path` has no entry of; return the entries of all of them.

    Args:
        engines: By name; a name that ends in fp64 is given float64 matrices, others float32.
        budget: Effort.
        machine: Processor and versions, for the file.
        path: The file.
        track: Called with the names that are left; what it returns is iterated over.

    Raises:
        ValueError: If the file belongs to another budget or machine.
    """
    about = {"budget": asdict(budget), "machine": dict(machine)}
    entries = _read(path, about)
    left = [n for n, e in engines.items() if entries.get(n, {}).get("engine") != repr(e)]
    samples: dict[torch.dtype, list[tuple[Entry, Sample]]] = {}
    for name in track(left):
        dtype = torch.float64 if name.endswith("fp64") else torch.float32
        if dtype not in samples:
            samples[dtype] = list(_samples(budget.size, dtype))
        engine = engines[name]
        cases = [case | measure(engine, sample) for case, sample in samples[dtype]]
        found = {"engine": repr(engine), "cases": cases, **ends(engine, budget, dtype)}
        entries[name] = found
        _write(path, about | {"engines": entries})
    return {name: entries[name] for name in engines}


def ends(engine: Engine, budget: Budget, dtype: torch.dtype) -> Entry:
    """Search both ends; `least` is None where no lower end is promised.

    An end is the worst of all shapes: its value, what is promised there, the shape and the family.
    """
    device = torch.device("cpu")
    tops, bottoms = [], []
    for shape, effort in budget.searches():
        band = engine.band(*shape, dtype, device)
        worst = search(partial(_stretched, engine), shape, dtype=dtype, **effort)
        tops.append(_end(worst, worst.score, band.high, shape))
        if band.low > 0:
            worst = search(partial(_shortened, engine, band), shape, dtype=dtype, **effort)
            bottoms.append(_end(worst, -worst.score, band.low, shape))
    kept = [end for end in bottoms if end["value"] < float("inf")]
    return {
        "largest": max(tops, key=lambda end: end["value"]),
        "least": min(kept, key=lambda end: end["value"], default=None),
    }


def _stretched(engine: Engine, M: Tensor) -> Tensor:
    return largest(engine(M))


def _shortened(engine: Engine, band: Band, M: Tensor) -> Tensor:
    return -least_promised(engine, M, band)


def _end(worst: Worst, value: float, promised: float, shape: Shape) -> Entry:
    return {"value": value, "promised": promised, "shape": list(shape), "family": worst.family}


def _samples(size: int, dtype: torch.dtype) -> Iterator[tuple[Entry, Sample]]:
    """Return every case, in words and as a sample."""
    shapes = {"square": (size, size), "4:1": (4 * size, size), "1:4": (size, 4 * size)}
    shapes["30:1"] = (30 * size, size)
    for name, shape in shapes.items():
        for spectrum, zero_row in [*((s, False) for s in SPECTRA), ("condition 1e3", True)]:
            case = Case(spectrum, shape, zero_row)
            about = {"case": str(case), "shape": name, "size": list(shape)}
            yield about, Sample.of(case.matrix().to(dtype), case.rank)


def _read(path: Path, about: Mapping[str, Any]) -> dict[str, Entry]:
    """Return the entries of the file; none if there is no file."""
    if not path.exists():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    for name, value in about.items():
        if kept.get(name) != value:
            raise ValueError(
                f"{path} was made with {name} {kept.get(name)}, this run has {value}: "
                "choose another --out, or pass --fresh to start anew"
            )
    entries: dict[str, Entry] = kept["engines"]
    return entries


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write the file beside its place, then put it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(beside, path)
