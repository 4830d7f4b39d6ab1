"""Command `polarlight doctor`: versions, devices, and engines that run here or fail.

Needs torch alone, so that `python -m polarlight doctor` answers where something is missing.
"""

import argparse
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils._triton import has_triton

from polarlight.lab.accuracy.spectra import Engine
from polarlight.lab.commands.registry import engines
from polarlight.lab.train.environment import hardware, versions
from polarlight.linalg.slot import PolarMap

Record = dict[str, Any]

_PACKAGES = ("triton", "transformers", "accelerate", "lightning", "peft", "safetensors")
_COARSE = 0.4
"""An engine that differs from the exact factor by more, per unit of norm, is called broken.

Jordan's iteration is 0.2 off by design; see `docs/accuracy.md`.
"""


def examine() -> Record:
    """Return versions, extras, devices, engines, compilation and distribution, as JSON types."""
    devices = list(_devices())
    return {
        "versions": {**versions(), **{name: _version(name) for name in _PACKAGES}},
        "extras": _extras(),
        "devices": {str(device): hardware(device) for device in devices},
        "engines": {str(device): _engines(device) for device in devices},
        "torch.compile": _compilation(),
        "distributed": _distribution(),
    }


def main(arguments: Sequence[str] = ()) -> int:
    """Print the examination; return 1 if an engine does not run, else 0."""
    parser = argparse.ArgumentParser(
        prog="polarlight doctor",
        description="Print versions, devices, and which engines run here and why not.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)
    found = examine()
    print(json.dumps(found, indent=1) if options.json else text_of(found))
    return int(any(_broken(found)))


def text_of(found: Mapping[str, Any]) -> str:
    """Format the examination for a terminal; engines that run share a line."""
    lines = []
    for title in ("versions", "extras"):
        lines += [title, *_columns(found[title])]
    for device, about in found["devices"].items():
        lines += [f"device {device}", *_columns({k: v for k, v in about.items() if k != "device"})]
        said: dict[str, list[str]] = {}
        for name, verdict in found["engines"][device].items():
            said.setdefault(verdict, []).append(name)
        lines += [f"engines on {device}"]
        lines += [f"  {verdict}: {', '.join(names)}" for verdict, names in said.items()]
    lines += [f"torch.compile  {found['torch.compile']}", f"distributed    {found['distributed']}"]
    broken = list(_broken(found))
    lines += [f"{len(broken)} engines do not run here" if broken else "every engine runs here"]
    return "\n".join(lines)


def _broken(found: Mapping[str, Any]) -> Iterator[str]:
    for device, verdicts in found["engines"].items():
        for name, verdict in verdicts.items():
            if verdict != "runs":
                yield f"{name} on {device}"


def _columns(values: Mapping[str, str]) -> list[str]:
    width = max(map(len, values), default=0)
    return [f"  {key.ljust(width)}  {value}" for key, value in values.items()]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _name_in(requirement: str) -> str:
    """Return the name in a requirement, without its versions and extras."""
    found = re.match(r"[\w.-]+", requirement)
    return found.group() if found else requirement


def _extras() -> dict[str, str]:
    """Return for every extra that it is complete, or the packages it lacks."""
    lacking: dict[str, list[str]] = {}
    for requirement in requires("polarlight") or ():
        package, _, extra = requirement.partition("; extra == ")
        if extra:
            name = _name_in(package)
            missing = lacking.setdefault(extra.strip("'\""), [])
            if _version(name) == "not installed":
                missing.append(name)
    command = "pip install 'polarlight[{}]'"
    return {
        extra: f"lacks {', '.join(missing)}: {command.format(extra)}" if missing else "complete"
        for extra, missing in lacking.items()
    }


def _devices() -> Iterator[torch.device]:
    yield torch.device("cpu")
    for index in range(torch.cuda.device_count()):
        yield torch.device("cuda", index)
    if torch.backends.mps.is_available():
        yield torch.device("mps")


def _engines(device: torch.device) -> dict[str, str]:
    """Return `runs` or the error for every engine, tried on a small matrix."""
    M = torch.randn(24, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(M, full_matrices=False)
    known = engines().items()
    return {name: _verdict(engine, name, M, U @ Vh, device) for name, engine in known}


def _verdict(engine: Engine, name: str, M: Tensor, exact: Tensor, device: torch.device) -> str:
    dtype = torch.float64 if name.endswith("fp64") else torch.float32
    try:
        found = engine(M.to(device, dtype)).cpu().double()
    except (RuntimeError, NotImplementedError, TypeError) as error:
        return f"fails: {str(error).splitlines()[0][:120]}"
    if not isinstance(engine, PolarMap):  # another map of singular values
        return "runs" if found.isfinite().all() else "gives NaN or Inf"
    off = float((found - exact).norm() / exact.norm())
    return "runs" if off < _COARSE else f"differs from the exact factor by {off:.2g}"


def _compilation() -> str:
    if has_triton():
        return "through Triton"
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "cl")), None)
    if compiler:
        return f"on the CPU, with {compiler}"
    return "not available: no Triton, and no C++ compiler (g++, clang++) on the path"


def _distribution() -> str:
    if not distributed.is_available():
        return "not available: torch was built without it"
    names = ("gloo", "nccl", "mpi", "ucc")
    found = [name for name in names if getattr(distributed, f"is_{name}_available")()]
    return ", ".join(found) or "no backend"
