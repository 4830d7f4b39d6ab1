"""A probe that counts starving neurons: rows of tall matrices that get next to nothing of the step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from polarlight.diagnostics.spectra import (
    leverages,
    row_shares,
    singular_values,
    spread,
    starved,
)
from polarlight.linalg.matrices import at_least_float32
from polarlight.optimizer import Observation
from polarlight.view import Whole

THRESHOLDS = (0.01, 0.1, 0.25)
"""A row is starved below this fraction of an equal share; the literature names no single number."""

Record = dict[str, Any]


@dataclass(slots=True)
class NeuronMonitor:
    """Records, every so many steps, how evenly the rows of tall matrices are moved.

    For `optimizer.observe(monitor)`. Two readings of the same question, per matrix [m, n], m > n:
    `update` is the row's share of the update itself, whatever the rule; `momentum` is the row's
    leverage in the momentum, times m/n: the share that plain Muon would give it.

    Attributes:
        sink: Called with (step, records) after each observed step; records by parameter name.
        every: Observe steps 1, 1 + every, ...; at least 1.
        step: Steps seen so far; set it when a run is resumed.
        full: Also record the shares and singular values themselves at the next observed step.
    """

    sink: Callable[[int, dict[str, Record]], None]
    every: int = 25
    step: int = 0
    full: bool = False
