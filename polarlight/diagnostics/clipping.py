"""Probe that warns about clipped gradients where clipping does not limit the step.

Clipping multiplies all gradients of a step by one factor. A scale-free rule gives the same update
for every factor, so no step becomes smaller; a clipped gradient only weighs less in the momentum.
"""

import math
import warnings
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from polarlight.lookup import arguments_checked, check_count, check_optimizer
from polarlight.optimizer.probe import Observation
from polarlight.properties.symmetry import degree
from polarlight.rule import UpdateRule

SAME = 1e-4
"""Relative difference up to which two norms count as one number: clipping leaves about 1e-6."""


class ClippingWarning(UserWarning):
    """Warning: gradients are clipped, but the scale of a gradient cancels in these rules."""


@arguments_checked
@dataclass(slots=True)
class ClippingCheck:
    """Probe that warns once if the gradients of scale-free rules arrive clipped to a norm.

    Clipped gradients have the same norm again and again: the largest of `samples` norms has to come
    up at least `needed` times. Norms that vary by a few percent do so less than once in a million
    runs. The probe detects clipping by the norm over all parameters of this optimizer, of float32
    gradients. It does not detect clipping by value, by parameter, over the parameters of several
    optimizers, or of bfloat16 gradients on accelerators, where the factor itself is rounded.

    Attributes:
        optimizer: The optimizer that is observed.
        every: MatrixSample at steps 1, 1 + every, ...; at least 1.
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
    samples: int = 8
    needed: int = 4
    clipped_to: float | None = None
    _step: int = 0
    _norms: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_optimizer("ClippingCheck", self.optimizer)
        for name in ("every", "samples", "needed"):
            check_count(name, getattr(self, name))
        if not 2 <= self.needed <= self.samples:
            raise ValueError(f"needed must lie in [2, samples = {self.samples}], got {self.needed}")

    def begin(self) -> bool:
        """Count the step; keep the gradient norm of a sampled step; always return False."""
        self._step += 1
        if len(self._norms) < self.samples and (self._step - 1) % self.every == 0:
            self._norms += self._norm()
            if len(self._norms) == self.samples:
                self._compare(torch.stack(self._norms).tolist())
        return False

    def observe(self, observation: Observation) -> None:
        """Do nothing: `begin` reads the gradients."""

    def end(self) -> None:
        """Do nothing: `begin` returns False in every step."""

    def _norm(self) -> list[Tensor]:
        """Return [norm of all gradients], float64 on the device; [] without gradients."""
        gradients = [
            p.grad for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None
        ]
        if not gradients:
            return []
        norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]
        return [torch.stack([norm.to(norms[0].device) for norm in norms]).norm()]

    def _compare(self, norms: list[float]) -> None:
        """Warn if the largest norm came up at least `needed` times and a rule is scale-free."""
        largest = max(norms)
        times = sum(largest - norm <= SAME * largest for norm in norms)
        free = self._free_of_scale()
        if times < self.needed or not 0 < largest < math.inf or not free:
            return
        self.clipped_to = largest
        rules = ", ".join(f"{name} ({count} parameters)" for name, count in free.items())
        warnings.warn(
            f"the norm of all gradients was {largest:.4g} in {times} of {self.samples} samples: "
            f"they are clipped to it. The gradient's scale cancels in {rules}: clipping limits no "
            "step there, it only lowers the weight of clipped gradients in the momentum. For "
            "smaller steps lower lr; non-finite gradients are skipped without clipping; to clip "
            "AdamW's parameters, clip them by themselves.",
            ClippingWarning,
            stacklevel=2,
        )

    def _free_of_scale(self) -> Counter[str]:
        """Count the parameters of each rule whose update ignores the gradient's scale."""
        found: Counter[str] = Counter()
        for group in self.optimizer.param_groups:
            rule = group["rule"]
            if isinstance(rule, UpdateRule) and degree(rule, 2, 1) == degree(rule, 1, 2) == 0:
                found[rule.name] += len(group["params"])
        return found
