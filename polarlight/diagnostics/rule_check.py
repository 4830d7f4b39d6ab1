"""Probe that counts updates by rule and checks sampled updates against the rule's promises."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polarlight.diagnostics.transfer import to_host
from polarlight.linalg.properties import Invariant
from polarlight.lookup import arguments_checked, check_count
from polarlight.optimizer.probe import Observation
from polarlight.properties.invariants import invariants
from polarlight.properties.measures import Update
from polarlight.rule import Rule
from polarlight.view import Whole


@dataclass(frozen=True, slots=True)
class ParameterCheck:
    """Counts and measurements of one parameter.

    Attributes:
        name: The parameter.
        rules: Number of updates by each rule.
        measures: Worst value of each promise's measure over the sampled steps.
        limits: Largest value of each measure that keeps the promise.
        frozen: True if the parameter took no gradient in the last step.
    """

    name: str
    rules: dict[str, int]
    measures: dict[Invariant, float]
    limits: dict[Invariant, float]
    frozen: bool

    @property
    def broken(self) -> dict[Invariant, float]:
        """Measure above their limits, by promise; a NaN is above any limit."""
        return {key: x for key, x in self.measures.items() if not x <= self.limits[key]}

    @property
    def verdict(self) -> str:
        """`kept`, `not sampled`, `frozen`, `NEVER UPDATED`, or the broken promises."""
        if self.broken:
            return "BROKEN: " + ", ".join(
                f"{key} ({x:.3g}, at most {self.limits[key]:.3g})" for key, x in self.broken.items()
            )
        if not self.rules:
            return "frozen" if self.frozen else "NEVER UPDATED"
        return "kept" if self.measures else "not sampled"


@arguments_checked
@dataclass(slots=True)
class RuleCheck:
    """Count every parameter's updates by rule; check sampled updates against their promises.

    Counts are host integers and measurements stay on the device, so a step waits for nothing.
    `verdicts` and `report` copy once per device. A sampled step costs up to four steps of a rule:
    it computes dual weights and, where a rule has no buffers, the direction again.

    Attributes:
        every: Sample steps 1, 1 + every, ...; at least 1.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> monitor = polarlight.RuleCheck(every=100)
        >>> handle = optimizer.observe(monitor)
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> print(monitor.report())
        0.weight  muon x 1  kept
        0.bias    adamw x 1  kept
        1.bias    adamw x 1  kept
        1.weight  adamw x 1  kept
    """

    every: int = 100
    _step: int = 0
    _counts: dict[str, Counter[str]] = field(default_factory=dict)
    _frozen: set[str] = field(default_factory=set)
    _worst: dict[str, dict[Invariant, Tensor]] = field(default_factory=dict)
    _limits: dict[str, dict[Invariant, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_count("every", self.every)

    def begin(self) -> bool:
        """Count the step; return True if it is sampled."""
        self._step += 1
        return (self._step - 1) % self.every == 0

    def count(self, name: str, rule: Rule | None, *, frozen: bool = False) -> None:
        """Count one update of a parameter by `rule`; None counts no update."""
        counter = self._counts.setdefault(name, Counter())
        if rule is not None:
            counter[rule.name] += 1
        (self._frozen.add if frozen else self._frozen.discard)(name)

    def observe(self, observation: Observation) -> None:
        """Measure one update on the device and keep the worst value of each promise."""
        rule, view = observation.group["rule"], observation.group.get("view")
        if observation.parameter.ndim < 2:  # a vector, whatever view its group was given
            pairs = [(observation.momentum.reshape(1, -1), observation.direction.reshape(1, -1))]
        else:
            view = view or Whole()
            split = (view.split(X) for X in (observation.momentum, observation.direction))
            pairs = list(zip(*split, strict=True))
        worst = self._worst.setdefault(observation.name, {})
        limits = self._limits.setdefault(observation.name, {})
        for M, D in pairs:
            m, n = D.shape[-2:]
            kept = invariants(rule, m, n, D.dtype, D.device)
            update = Update(M, D, rule, kept)
            for promise, limit in kept.items():
                value = update.measure(promise)
                known = worst.get(promise)
                worst[promise] = value if known is None else torch.maximum(known, value)
                limits[promise] = max(limit, limits.get(promise, 0.0))

    def end(self) -> None:
        """Do nothing: measurements stay on the device until `verdicts` reads them."""

    def missing(self) -> list[str]:
        """Return the names of trainable parameters that were never updated."""
        return [
            name for name, count in self._counts.items() if not count and name not in self._frozen
        ]

    def verdicts(self) -> list[ParameterCheck]:
        """Return one result per parameter of the optimizer, in the order of its groups."""
        measures = to_host(self._worst)
        return [
            ParameterCheck(
                name,
                dict(count),
                measures.get(name, {}),
                dict(self._limits.get(name, {})),
                name in self._frozen,
            )
            for name, count in self._counts.items()
        ]

    def broken(self) -> list[ParameterCheck]:
        """Return the results of parameters whose sampled updates broke a promise."""
        return [verdict for verdict in self.verdicts() if verdict.broken]

    def report(self) -> str:
        """Return a table of parameter, updates by rule and verdict; faults first."""
        verdicts = sorted(self.verdicts(), key=lambda v: not (v.broken or not v.rules))
        if not verdicts:
            return "no step seen: call optimizer.observe(check) before training"
        width = max(len(verdict.name) for verdict in verdicts)
        lines = [
            f"{v.name:<{width}}  "
            f"{', '.join(f'{rule} x {count}' for rule, count in v.rules.items()) or '-'}"
            f"  {v.verdict}"
            for v in verdicts
        ]
        return "\n".join(lines)
