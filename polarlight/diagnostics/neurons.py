"""A probe that tells how an optimizer treats the neurons of a network: whom it starves, and how.

Everything is measured on the device and handed over in one transfer. Leverages come from a Cholesky
factor of the momentum's Gram matrix, singular values from Gram matrices and in turn; what that
costs is measured by `python -m benchmarks.monitor_cost`.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from polarlight.diagnostics.eager import outside_graphs
from polarlight.diagnostics.matrix_record import Look, Readings, read
from polarlight.diagnostics.pairs import block_and_half
from polarlight.diagnostics.sink import History, Record, Sink, hand_over, new_history
from polarlight.diagnostics.spectra import singular_values
from polarlight.diagnostics.starvation import (
    THRESHOLDS,
    Persistence,
    by_threshold,
    starved_rows,
)
from polarlight.diagnostics.transfer import to_host
from polarlight.optimizer.probe import Observation
from polarlight.routing.roles import MATRIX_ROLES
from polarlight.rule import UpdateRule
from polarlight.view import Whole

__all__ = ["READINGS", "THRESHOLDS", "NeuronMonitor", "Record", "Sink"]

READINGS = ("update", "momentum")
"""Two readings of a row's share; see `NeuronMonitor`."""


@dataclass(slots=True)
class NeuronMonitor:
    """Records, every so many steps, how the neurons of tall matrices are moved.

    Two readings of the same question, per matrix [m, n], m > n: `update` is the row's share of the
    update itself, whatever the rule; `momentum` is the row's leverage in the momentum, times m/n:
    the share that plain Muon would give it. Beside the numbers of `matrix_record.read` each reading
    tells which rows ever starved and which stayed so (`starvation.Persistence`), and the matrices
    of a gated MLP have `pair`: the share of neurons whose gate and up rows are both starved.

    Under `torch.compile` of the step the probe breaks the graph and runs as it is.

    Attributes:
        sink: Called with (step, records) after each observed step; records by parameter name. None
            keeps the last thousand in `history`.
        every: Observe steps 1, 1 + every, ...; at least 1.
        step: Steps seen so far; set it when a run is resumed.
        full: Observe the next step in any case, with the shares and singular values themselves.
        seconds: Time spent so far, waiting for the device included.
        spectra: How many matrices per observed step are asked for their singular values, in turn;
            at least 0. The first observed step asks all of them.
        columns: Whether wide matrices are observed by their columns, where the neurons of a down
            projection lie.
        hold: Observed steps that are transferred together; with more than 1, call `flush()` in the
            end.
        history: What was recorded, where there is no sink.

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
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")

    @outside_graphs
    def begin(self) -> bool:
        """Counts the step and says whether it is observed."""
        self.step += 1
        return self.full or (self.step - 1) % self.every == 0

    @outside_graphs
    def observe(self, observation: Observation) -> None:
        """Adds one record per hidden matrix that is observed; parts of a view are numbered."""
        if not is_hidden(observation.group):
            return
        start = time.perf_counter()
        looks = _looks(observation)
        for i, look in enumerate(looks):
            m, n = look.weight.shape[-2:]
            if m > n or (m < n and self.columns):
                name = observation.name
                key = name if len(looks) == 1 else f"{name}[{i}]"
                readings = self._record(key, look if m > n else look.turned())
                self._remember(block_and_half(name, i, len(looks)), key, readings)
        self.seconds += time.perf_counter() - start

    @outside_graphs
    def end(self) -> None:
        """Closes the step; its records go to the sink, or wait for others."""
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
        """Transfers what is held and hands it to the sink."""
        start = time.perf_counter()
        held, self._held = self._held, []
        numbers = to_host({str(i): records for i, (_, records) in enumerate(held)})
        self.seconds += time.perf_counter() - start
        for (step, _), records in zip(held, numbers.values(), strict=True):
            hand_over(self.sink, self.history, step, records)

    def state_dict(self) -> dict[str, Any]:
        """What goes on when a run is resumed: steps, whose turn it is, who has starved so far."""
        persistence = {reading: p.state() for reading, p in self._persistence.items()}
        return {"step": self.step, "turn": self._turn, "persistence": persistence}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.step, self._turn = state["step"], state["turn"]
        for reading, saved in state["persistence"].items():
            self._persistence[reading].restore(saved)

    def _record(self, key: str, look: Look) -> Readings:
        turn = (len(self._records) - self._turn) % max(1, self._matrices())
        readings = read(look, spectra=self.full or turn < self.spectra)
        record = readings.record
        for reading, shares in _both(readings):
            record[reading] |= self._persistence[reading](key, starved_rows(shares))
            if self.full:
                record[reading]["shares"] = shares.flatten()
        if self.full:
            record["singular_values"] = singular_values(look.direction).flatten()
        self._records[key] = record
        return readings

    def _matrices(self) -> int:
        """How many matrices are observed, once it is known."""
        return len(self._persistence[READINGS[0]].names)

    def _remember(self, place: tuple[str, str] | None, key: str, readings: Readings) -> None:
        """Keeps the starved rows of a gate or up projection until its other half is seen."""
        if place is not None:
            masks = torch.stack([starved_rows(shares) for _, shares in _both(readings)])
            self._halves.setdefault(place[0], {})[place[1]] = key, masks


def _both(readings: Readings) -> Iterator[tuple[str, Tensor]]:
    return ((reading, getattr(readings, reading)) for reading in READINGS)


def is_hidden(group: Mapping[str, Any]) -> bool:
    """Whether a group holds hidden matrices; without a role, what has a matrix rule is one."""
    role = group.get("role")
    return role in MATRIX_ROLES or (not role and isinstance(group["rule"], UpdateRule))


def _looks(observation: Observation) -> list[Look]:
    view = observation.group.get("view") or Whole()
    lr = observation.group["lr"]
    weights, directions, momenta = (
        view.split(X)
        for X in (observation.parameter.detach(), observation.direction, observation.momentum)
    )
    return [Look(W, D, M, lr) for W, D, M in zip(weights, directions, momenta, strict=True)]
