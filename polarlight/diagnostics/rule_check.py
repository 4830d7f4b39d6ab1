"""A probe that proves the rules ran: every update counted, and some held to what is promised."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polarlight.diagnostics.transfer import to_host
from polarlight.linalg.properties import Invariant
from polarlight.optimizer.probe import Observation
from polarlight.properties.invariants import invariants
from polarlight.properties.measures import Update
from polarlight.rule import Rule
from polarlight.view import Whole


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of one parameter.

    Attributes:
        name: The parameter.
        rules: How many steps each rule gave it.
        measures: The worst value of each promise's measure over the sampled steps, by promise.
        limits: Up to which value each of them counts as kept.
        frozen: Whether it asked for no gradient when it was last seen.
    """

    name: str
    rules: dict[str, int]
    measures: dict[Invariant, float]
    limits: dict[Invariant, float]
    frozen: bool

    @property
    def broken(self) -> dict[Invariant, float]:
        """Measures beyond their limits; a NaN is beyond any."""
        return {key: x for key, x in self.measures.items() if not x <= self.limits[key]}

    @property
    def verdict(self) -> str:
        """One word or a list of broken promises."""
        if self.broken:
            return "BROKEN: " + ", ".join(
                f"{key} ({x:.3g}, at most {self.limits[key]:.3g})" for key, x in self.broken.items()
            )
        if not self.rules:
            return "frozen" if self.frozen else "NEVER UPDATED"
        return "kept" if self.measures else "not sampled"


@dataclass(slots=True)
class RuleCheck:
    """Counts every parameter's updates by rule, and samples whether updates keep their promises.

    Counts are host integers and samples stay on the device, where the worst is kept: a step waits
    for nothing. `verdicts` and `report` transfer once per device. A sampled step costs up to four
    steps of a rule: it computes weights and, where a rule has no memory, the direction again.

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
        1.weight  muon x 1  kept
        0.bias    adamw x 1  kept
        1.bias    adamw x 1  kept
    """

    every: int = 100
    _step: int = 0
    _counts: dict[str, Counter[str]] = field(default_factory=dict)
    _frozen: set[str] = field(default_factory=set)
    _worst: dict[str, dict[Invariant, Tensor]] = field(default_factory=dict)
    _limits: dict[str, dict[Invariant, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be >= 1, got {self.every}")

    def begin(self) -> bool:
        """Counts the step and says whether it is sampled."""
        self._step += 1
        return (self._step - 1) % self.every == 0

    def count(self, name: str, rule: Rule | None, *, frozen: bool = False) -> None:
        """One parameter got one update by `rule`, or None."""
        counter = self._counts.setdefault(name, Counter())
        if rule is not None:
            counter[rule.name] += 1
        (self._frozen.add if frozen else self._frozen.discard)(name)

    def observe(self, observation: Observation) -> None:
        """Measures one update on the device."""
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
        """Nothing is due."""

    def missing(self) -> list[str]:
        """Parameters that ask for gradients and were never updated."""
        return [
            name for name, count in self._counts.items() if not count and name not in self._frozen
        ]

    def verdicts(self) -> list[Verdict]:
        """One verdict per parameter of the optimizer, in the order of its groups."""
        measures = to_host(self._worst)
        return [
            Verdict(
                name,
                dict(count),
                measures.get(name, {}),
                dict(self._limits.get(name, {})),
                name in self._frozen,
            )
            for name, count in self._counts.items()
        ]

    def broken(self) -> list[Verdict]:
        """Those whose updates were sampled and found to be something else."""
        return [verdict for verdict in self.verdicts() if verdict.broken]

    def report(self) -> str:
        """A table: parameter, updates by rule, verdict; troubles first."""
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
