"""Public list of coefficient tables of Newton-Schulz iterations; each is a `Schedule`.

Source, normalisation and safety of each stand where it is defined.
"""

from polarlight.linalg.auto import QUICK
from polarlight.linalg.chaotic import KAON, MAXIMAL_SLOPE
from polarlight.linalg.coefficients import (
    CANS,
    CUBIC,
    CUBIC5,
    DEEPSEEK_V4,
    JORDAN,
    PADE_QUINTIC,
    SIMPLE_QUINTIC,
    TURBO_MUON,
    YOU,
)
from polarlight.linalg.polar_express import MODDED_NANOGPT

__all__ = [
    "CANS",
    "CUBIC",
    "CUBIC5",
    "DEEPSEEK_V4",
    "JORDAN",
    "KAON",
    "MAXIMAL_SLOPE",
    "MODDED_NANOGPT",
    "PADE_QUINTIC",
    "QUICK",
    "SIMPLE_QUINTIC",
    "TURBO_MUON",
    "YOU",
]
