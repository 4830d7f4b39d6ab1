"""Probe of starved neurons: how much of each update every row of a tall matrix receives.

Statistics are computed on the device and copied once per observed step. Leverages come from a
Cholesky factor of the momentum's Gram matrix, singular values from Gram matrices of a few matrices
in turn. `python -m benchmarks.monitor_cost` measures the cost.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from polarlight.diagnostics.matrix_record import MatrixSample, Readings, measure_matrix
from polarlight.diagnostics.sinks.records import (
    History,
    Record,
    Sink,
    check_sink,
    new_history,
    send_records,
)
from polarlight.diagnostics.spectra import singular_values
from polarlight.diagnostics.starvation import (
    THRESHOLDS,
    Persistence,
    by_threshold,
    starved_rows,
)
from polarlight.diagnostics.transfer import to_host
from polarlight.lookup import arguments_checked, check_count
from polarlight.optimizer.probe import Observation, outside_graphs
from polarlight.routing.roles import MATRIX_ROLES
from polarlight.routing.roles.names import block_and_half
from polarlight.rule import UpdateRule
from polarlight.view import Whole

__all__ = ["READINGS", "THRESHOLDS", "NeuronMonitor", "Record", "Sink"]

READINGS = ("update", "momentum")
"""Two readings of a row's share; see `NeuronMonitor`."""


@arguments_checked
@dataclass(slots=True)
class NeuronMonitor:
    """Record row shares, sizes and spectra of tall matrices every `every` steps.

    Two readings of a row's share, per matrix [m, n], m > n: `update` is the row's share of the
    update itself; `momentum` is the row's leverage in the momentum, times m/n: its share of plain
    Muon's update. Beside the numbers of `measure_matrix`, each reading has the fractions of rows
    that ever starved and that starved ever since (`starvation.Persistence`). The matrices of a
    gated MLP have `pair`: the share of neurons whose gate and up rows are both starved.

    Under `torch.compile` of the step the probe breaks the graph and runs as it is.

    Attributes:
        sink: Called with (step, records) after each observed step; records by parameter name. None
            keeps the last thousand in `history`.
        every: Observe steps 1, 1 + every, ...; at least 1.
        step: Steps counted so far; set it when a run is resumed.
        full: Observe the next step in any case, with the shares and singular values themselves.
        seconds: Time spent so far, waiting for the device included.
        spectra: Number of matrices per observed step whose singular values are computed, in turn;
            at least 0. The first observed step computes all of them.
        columns: Also observe wide matrices by their columns, the neurons of a down projection.
        hold: Observed steps that are copied together; with more than 1, call `flush()` at the end.
        history: Records, where there is no sink.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> monitor = polarlight.NeuronMonitor(every=50)
        >>> handle = optimizer.observe(monitor)
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> step, records = monitor.history[0]
        >>> list(records)
        ['0.weight']
    """

    sink: Sink | None = None
    every: int = 50
    step: int = 0
    full: bool = False
    seconds: float = 0.0
    spectra: int = 2
    columns: bool = False
    hold: int = 1
    history: History = field(default_factory=new_history)
    _records: dict[str, Record] = field(default_factory=dict)
    _halves: dict[str, dict[str, tuple[str, Tensor]]] = field(default_factory=dict)
    _held: list[tuple[int, dict[str, Record]]] = field(default_factory=list)
    _persistence: dict[str, Persistence] = field(
        default_factory=lambda: {reading: Persistence() for reading in READINGS}
    )
    _turn: int = 0

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("hold", 1), ("spectra", 0)):
            check_count(name, getattr(self, name), least)
        check_sink(self.sink)

    @outside_graphs
    def begin(self) -> bool:
        """Count the step; return True if it is observed."""
        self.step += 1
        return self.full or (self.step - 1) % self.every == 0

    @outside_graphs
    def observe(self, observation: Observation) -> None:
        """Add one record per matrix of a hidden parameter; several are numbered."""
        if not is_hidden(observation.group):
            return
        start = time.perf_counter()
        samples = _samples(observation)
        for i, sample in enumerate(samples):
            m, n = sample.weight.shape[-2:]
            if m > n or (m < n and self.columns):
                name = observation.name
                key = name if len(samples) == 1 else f"{name}[{i}]"
                readings = self._record(key, sample if m > n else sample.transposed())
                self._remember(block_and_half(name, i, len(samples)), key, readings)
        self.seconds += time.perf_counter() - start

    @outside_graphs
    def end(self) -> None:
        """Finish the step: pair gate and up rows, and flush once `hold` steps are kept."""
        start = time.perf_counter()
        for block in self._halves.values():
            if len(block) == 2:
                (gate, a), (up, b) = block["gate"], block["up"]
                if a.shape == b.shape:
                    pair = {r: by_threshold((a & b)[i]) for i, r in enumerate(READINGS)}
                    self._records[gate]["pair"] = self._records[up]["pair"] = pair
        self._turn += self.spectra
        self._held.append((self.step, self._records))
        self._records, self._halves, self.full = {}, {}, False
        self.seconds += time.perf_counter() - start
        if len(self._held) >= self.hold:
            self.flush()

    def flush(self) -> None:
        """Copy all kept records to the host in one transfer and send them to the sink."""
        start = time.perf_counter()
        held, self._held = self._held, []
        numbers = to_host({str(i): records for i, (_, records) in enumerate(held)})
        self.seconds += time.perf_counter() - start
        for (step, _), records in zip(held, numbers.values(), strict=True):
            send_records(self.sink, self.history, step, records)

    def state_dict(self) -> dict[str, Any]:
        """Return the step count, whose spectra come next, and which rows ever starved."""
        persistence = {reading: p.state() for reading, p in self._persistence.items()}
        return {"step": self.step, "turn": self._turn, "persistence": persistence}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.step, self._turn = state["step"], state["turn"]
        for reading, saved in state["persistence"].items():
            self._persistence[reading].restore(saved)

    def _record(self, key: str, sample: MatrixSample) -> Readings:
        """Measure one sample, add its record under `key`, and return the readings."""
        seen = len(self._persistence[READINGS[0]].names)  # matrices, known from the second step on
        turn = (len(self._records) - self._turn) % max(1, seen)
        readings = measure_matrix(sample, spectra=self.full or turn < self.spectra)
        record = readings.record
        for reading, shares in _both(readings):
            record[reading] |= self._persistence[reading](key, starved_rows(shares))
            if self.full:
                record[reading]["shares"] = shares.flatten()
        if self.full:
            record["singular_values"] = singular_values(sample.direction).flatten()
        self._records[key] = record
        return readings

    def _remember(self, place: tuple[str, str] | None, key: str, readings: Readings) -> None:
        """Keep the starved rows of a gate or up projection until the step ends."""
        if place is not None:
            masks = torch.stack([starved_rows(shares) for _, shares in _both(readings)])
            self._halves.setdefault(place[0], {})[place[1]] = key, masks


def _both(readings: Readings) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and row shares of both readings."""
    return ((reading, getattr(readings, reading)) for reading in READINGS)


def is_hidden(group: Mapping[str, Any]) -> bool:
    """Tell whether a group holds hidden matrices: by role, without one by the rule's type."""
    role = group.get("role")
    return role in MATRIX_ROLES or (not role and isinstance(group["rule"], UpdateRule))


def _samples(observation: Observation) -> list[MatrixSample]:
    """Return one sample per matrix of the parameter's view."""
    view = observation.group.get("view") or Whole()
    lr = observation.group["lr"]
    weights, directions, momenta = (
        view.split(X)
        for X in (observation.parameter.detach(), observation.direction, observation.momentum)
    )
    return [MatrixSample(W, D, M, lr) for W, D, M in zip(weights, directions, momenta, strict=True)]
