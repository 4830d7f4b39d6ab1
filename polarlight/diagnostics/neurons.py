"""A probe that counts starving neurons: rows of tall matrices that hardly move."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
from polarlight.probe import Observation
from polarlight.roles import MATRIX_ROLES
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
        full: Observe the next step in any case, with the shares and singular values themselves.
        seconds: Time spent so far, waiting for the device included.
    """

    sink: Callable[[int, dict[str, Record]], None]
    every: int = 25
    step: int = 0
    full: bool = False
    seconds: float = 0.0
    _records: dict[str, Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be >= 1, got {self.every}")

    def begin(self) -> bool:
        """Counts the step and says whether it is observed."""
        self.step += 1
        return self.full or (self.step - 1) % self.every == 0

    def observe(self, observation: Observation) -> None:
        """Adds one record per tall hidden matrix; parts of a view are numbered."""
        group, name = observation.group, observation.name
        if group.get("role") not in MATRIX_ROLES:
            return
        start = time.perf_counter()
        view = group.get("view") or Whole()
        directions, momenta = view.split(observation.direction), view.split(observation.momentum)
        for i, (D, M) in enumerate(zip(directions, momenta, strict=True)):
            if D.shape[-2] > D.shape[-1]:
                key = name if len(directions) == 1 else f"{name}[{i}]"
                self._records[key] = self._record(D, M)
        self.seconds += time.perf_counter() - start

    def end(self) -> None:
        """Hands the step's records to the sink."""
        self.sink(self.step, self._records)
        self._records, self.full = {}, False

    def _record(self, D: Tensor, M: Tensor) -> Record:
        m, n = D.shape[-2:]
        D, M = at_least_float32(D), at_least_float32(M)
        update, momentum = row_shares(D), leverages(M) * (m / n)
        record: Record = {
            "update": summary(update),
            "momentum": summary(momentum),
            "row_norm_spread": spread(update.sqrt()).mean().item(),
        }
        if self.full:
            record["update"]["shares"] = update.flatten().tolist()
            record["momentum"]["shares"] = momentum.flatten().tolist()
            record["singular_values"] = singular_values(D).flatten().tolist()
        return record


def summary(shares: Tensor) -> Record:
    """Starved fraction at each threshold, spread and minimum of row shares [..., m]."""
    return {
        "starved": {f"{t:g}": starved(shares, t).mean().item() for t in THRESHOLDS},
        "spread": spread(shares).mean().item(),
        "min": shares.min().item(),
    }
