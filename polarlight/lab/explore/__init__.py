"""One static page that shows a method's rounds on a matrix.

The mathematics runs in the reader's browser (`matrices.js`, double precision); Python only puts the
page together with the schedules' coefficients and, if wanted, momenta of a run.
"""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from polarlight.linalg.coefficients import Schedule

ROWS, COLUMNS = 96, 48
"""Largest matrix that the page is fast with; of larger ones it shows a corner."""


def page(schedules: Mapping[str, Schedule], momenta: Mapping[str, Tensor] | None = None) -> str:
    """Return the page as HTML without external files.

    Args:
        schedules: By name; those that need another normalisation than a norm are left out.
        momenta: Matrices [m, n] of a run, by name; what is beyond 96 x 48 is cut off.
    """
    data = {
        "schedules": {n: steps(s) for n, s in schedules.items() if s.normalisation.scalar},
        "recorded": {name: _record(M) for name, M in (momenta or {}).items()},
    }
    parts = {"css": "page.css", "matrices": "matrices.js", "page": "page.js"}
    html = _text("page.html")
    for name, file in parts.items():
        html = html.replace(_slot(name), _text(file))
    return html.replace(_slot("data"), json.dumps(data).replace("<", "\\u003c"))


def steps(schedule: Schedule) -> list[list[float]]:
    """Return (a, b, c) per step; the first includes the safety factor on its input."""
    first, *others = ([a, b, c] for a, b, c in schedule.steps)
    folded = [x / schedule.safety ** (2 * i + 1) for i, x in enumerate(first)]
    return [folded, *others]


def _record(M: Tensor) -> dict[str, Any]:
    m, n = M.shape
    corner = M.detach().to("cpu", torch.float64)[:ROWS, :COLUMNS]
    cut = "" if corner.shape == M.shape else f"corner {corner.shape[0]} x {corner.shape[1]} of "
    return {"about": f"{cut}{m} x {n}", "rows": corner.tolist()}


def _slot(name: str) -> str:
    return "{{ " + name + " }}"


def _text(name: str) -> str:
    return files("polarlight.lab.explore").joinpath(name).read_text(encoding="utf-8")
