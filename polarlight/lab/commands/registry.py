"""Schedules and engines by their names on the command line."""

from collections.abc import Mapping
from typing import TypeVar

import torch

from polarlight.lab.accuracy.spectra import Engine
from polarlight.linalg import (
    AOL,
    QDWH,
    AutoPolar,
    Chaotic,
    EigenPolar,
    ExactPolar,
    GramNewtonSchulz,
    GramSide,
    NewtonSchulz,
    OneSidedPolar,
    RegularisedPolar,
    Schatten4,
    Schatten8,
    Schedule,
    ZoloPD,
    polar_express,
    schedules,
)
from polarlight.linalg.polar_express import polar_express_listing
from polarlight.lookup import look_up

SCHEDULES: Mapping[str, Schedule] = {
    "jordan": schedules.JORDAN,
    "you": schedules.YOU,
    "simple": schedules.SIMPLE_QUINTIC,
    "cubic": schedules.CUBIC,
    "pade": schedules.PADE_QUINTIC,
    "deepseek-v4": schedules.DEEPSEEK_V4,
    "polar-express": polar_express(5),
    "polar-express-listing": polar_express_listing(5),
    "polar-express-6": polar_express(6),
    "polar-express-8": polar_express(8),
    "modded-nanogpt": schedules.MODDED_NANOGPT,
    "cans": schedules.CANS,
    "cubic5": schedules.CUBIC5,
    "turbo-muon": schedules.TURBO_MUON,
    "kaon": schedules.KAON,
    "maximal-slope": schedules.MAXIMAL_SLOPE,
}

_ITERATED = {k: s for k, s in SCHEDULES.items() if k not in ("kaon", "maximal-slope", "turbo-muon")}
_HALF, _SINGLE, _DOUBLE = torch.bfloat16, torch.float32, torch.float64


def engines() -> dict[str, Engine]:
    """Return every polar engine in the dtypes it supports, by `name dtype`."""
    found: dict[str, Engine] = {}
    for dtype in (_SINGLE, _DOUBLE):
        found |= {
            f"exact (SVD) {_short(dtype)}": ExactPolar(dtype=dtype),
            f"eigen {_short(dtype)}": EigenPolar(dtype=dtype),
            f"qdwh {_short(dtype)}": QDWH(dtype=dtype),
            f"zolo-pd {_short(dtype)}": ZoloPD(dtype=dtype),
        }
    found["regularised fp32"] = RegularisedPolar(dtype=_SINGLE)
    found["left side fp32"] = OneSidedPolar(GramSide.LEFT)
    for name, schedule in _ITERATED.items():
        for dtype in (_HALF, _SINGLE):
            found[f"{name} {_short(dtype)}"] = NewtonSchulz(schedule, dtype)
    found["turbo-muon (AOL) bf16"] = NewtonSchulz(schedules.TURBO_MUON, _HALF, AOL())
    found["polar-express (Schatten-4) bf16"] = NewtonSchulz(polar_express(5), _HALF, Schatten4())
    for dtype in (_HALF, torch.float16, _SINGLE):
        found[f"auto {_short(dtype)}"] = AutoPolar(dtype=dtype)
        found[f"auto (Gram) {_short(dtype)}"] = GramNewtonSchulz(
            schedules.QUICK, dtype, Schatten8()
        )
    for dtype in (torch.float16, _SINGLE):
        found[f"gram polar-express {_short(dtype)}"] = GramNewtonSchulz(dtype=dtype)
    for schedule in (schedules.KAON, schedules.MAXIMAL_SLOPE):
        found[f"{schedule.name.rsplit(maxsplit=1)[0]} fp32"] = Chaotic(schedule)
    return found


def unbounded() -> dict[str, Engine]:
    """Return Gram forms with fewer restarts than they need, of which no band is promised."""
    return {
        "gram polar-express restarted once fp16": GramNewtonSchulz(
            polar_express(5), torch.float16, restarts=(2,)
        ),
        "auto (Gram) restarted once bf16": GramNewtonSchulz(
            schedules.QUICK, _HALF, Schatten8(), (2,)
        ),
    }


def choose(names: str, known: Mapping[str, "T"], what: str) -> dict[str, "T"]:
    """Return the entries of `known` for names separated by commas; empty text takes all.

    Raises:
        ValueError: If a name is unknown; the message lists the known ones and the nearest.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    return {name: look_up(name, known, what) for name in wanted}


T = TypeVar("T")


def _short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16", _SINGLE: "fp32", _DOUBLE: "fp64"}[dtype]
