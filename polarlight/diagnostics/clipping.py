"""A probe that notices clipped gradients where clipping does not do what it is meant to.

Clipping multiplies all gradients of a step by one factor. A rule that is free of scale gives the
same update whatever the factor: no step becomes smaller. What is left is that a clipped gradient
weighs less in the momentum.
"""

import math
import warnings
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from polarlight.optimizer.probe import Observation
from polarlight.properties.symmetry import degree
from polarlight.rule import UpdateRule

SAME = 1e-4
"""Relative difference up to which two norms count as one number: clipping leaves about 1e-6."""


class ClippingWarning(UserWarning):
    """Gradients are clipped, and for these rules that does not limit the step."""


@dataclass(slots=True)
class ClippingCheck:
    """Warns once if the gradients of rules that are free of scale arrive clipped to a norm.

    The sign of clipping is that the norm of all gradients is the same number again and again: the
    largest of `looks` norms has to come up at least `needed` times. Norms that vary by a few
    percent do so less than once in a million runs. Seen is clipping by the norm over all parameters
    of this optimizer, of float32 gradients; not seen is clipping by value, by parameter, over the
    parameters of several optimizers, and of bfloat16 gradients on accelerators, where the factor
    itself is rounded.

    Attributes:
        optimizer: The optimizer that is observed.
        every: Look at steps 1, 1 + every, ...; at least 1.
        looks: Norms to compare; they stay on the device until the last, which waits for it. After
            that nothing is looked at any more.
        needed: How often the largest one must come up, in [2, looks].
        clipped_to: The norm, once it has been found.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> monitor = polarlight.diagnostics.ClippingCheck(optimizer)
        >>> handle = optimizer.observe(monitor)
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> monitor.clipped_to is None  # nothing found so far
        True
    """

    optimizer: Optimizer
    every: int = 10
    looks: int = 8
    needed: int = 4
    clipped_to: float | None = None
    _step: int = 0
    _norms: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be >= 1, got {self.every}")
        if not 2 <= self.needed <= self.looks:
            raise ValueError(f"needed must lie in [2, looks = {self.looks}], got {self.needed}")

    def begin(self) -> bool:
        """Takes the norm of this step's gradients if it is looked at; observes nothing else."""
        self._step += 1
        if len(self._norms) < self.looks and (self._step - 1) % self.every == 0:
            self._norms += self._norm()
            if len(self._norms) == self.looks:
                self._compare(torch.stack(self._norms).tolist())
        return False

    def observe(self, observation: Observation) -> None:
        """Is not called."""

    def end(self) -> None:
        """Is not called."""

    def _norm(self) -> list[Tensor]:
        """The norm of all gradients as a float64 tensor [], in a list that is empty without any."""
        gradients = [
            p.grad for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None
        ]
        if not gradients:
            return []
        norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]
        return [torch.stack([norm.to(norms[0].device) for norm in norms]).norm()]

    def _compare(self, norms: list[float]) -> None:
        largest = max(norms)
        times = sum(largest - norm <= SAME * largest for norm in norms)
        free = self._free_of_scale()
        if times < self.needed or not 0 < largest < math.inf or not free:
            return
        self.clipped_to = largest
        rules = ", ".join(f"{name} ({count} parameters)" for name, count in free.items())
        warnings.warn(
            f"the norm of all gradients was {largest:.4g} in {times} of {self.looks} looks: they "
            f"are clipped to it. The scale of a gradient cancels in {rules}: clipping limits no "
            "step there, it only lets the clipped gradients weigh less in the momentum. Smaller "
            "steps come from lr, gradients that are not finite are left out anyway, and AdamW's "
            "parameters can be clipped by themselves.",
            ClippingWarning,
            stacklevel=2,
        )

    def _free_of_scale(self) -> Counter[str]:
        """How many parameters have a rule in which the scale of gradients cancels, by rule."""
        found: Counter[str] = Counter()
        for group in self.optimizer.param_groups:
            rule = group["rule"]
            if isinstance(rule, UpdateRule) and degree(rule, 2, 1) == degree(rule, 1, 2) == 0:
                found[rule.name] += len(group["params"])
        return found
