"""Growth of weights under control: an outward step is braked, a tangential one leaves the norm.

    brake:   U <- U - (1 - outward) k W   where k = <U, W> / |W|^2 < 0, a step outward
    pin:     W <- r (W - lr U) / |W - lr U|,   r = |W| - lr <U, W> / |W|

A step of norm s across a weight lengthens it by s^2 / (2 |W|), whatever the loss says of its
length. The pin takes that away, so that the radial part alone changes the norm; the brake makes it
slow. Order of the records: brake, floor, pin.

Source: track-3 records of modded-nanogpt, brake and pin from number 29 on; decay after the pin:
number 46, with the mask of arXiv 2411.16085 and 2510.12402.
Deviations: no absolute floor beside |W|^2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.hooks.attach import FromGroup, Group, HookNumber, number_of
from polarlight.hooks.constraints import norm_of, reduced, step_of, with_norm
from polarlight.linalg.matrices import at_least_float32, nonzero
from polarlight.lookup import arguments_checked

LEAST_RADIUS = 1e-8
"""Norm of a weight after its first step from zero under a pin, as in the records."""


@arguments_checked
@dataclass(frozen=True, slots=True)
class RadialBrake:
    """Slow the part of a step that makes the weight larger; the rest of the step is untouched.

    Attributes:
        outward: Fraction of the outward radial part that is kept, in [0, 1]; a `FromGroup` follows
            a schedule.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> for hook in (polarlight.hooks.RadialBrake(0.5), polarlight.hooks.RadiusPin()):
        ...     handle = polarlight.hooks.attach(optimizer, hook)
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
    """

    outward: HookNumber = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.outward, FromGroup) and not 0 <= self.outward <= 1:
            raise ValueError(f"outward must lie in [0, 1], got {self.outward}")

    def __call__(self, weight: Tensor, before: Tensor, group: Group) -> Tensor:
        """Return the weight after the braked step; a step inward is as it was."""
        W, step = at_least_float32(before), step_of(weight, before, group)
        along = _inner(step, W) / nonzero(_inner(W, W))  # > 0 where the step is outward
        braked = (1 - number_of(self.outward, group)) * along.clamp(min=0) * W
        return (at_least_float32(weight) - braked).to(weight.dtype)


@arguments_checked
@dataclass(frozen=True, slots=True)
class RadiusPin:
    """Rescale the weight to the norm that the radial part of its step asks for, then decay it.

    The decay is cautious: entries whose step and decay agree, by the step as it came to this hook.
    A zero weight gets its step's direction and a norm of 1e-8.

    Attributes:
        weight_decay: Entries are multiplied by 1 - lr * weight_decay after the rescale; at least 0.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> handle = polarlight.hooks.attach(optimizer, polarlight.hooks.RadiusPin(0.025))
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
    """

    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be >= 0, got {self.weight_decay}")

    def __call__(self, weight: Tensor, before: Tensor, group: Group) -> Tensor:
        """Return the weight at its radius; one that was not stepped is as it was."""
        W, step = at_least_float32(before), step_of(weight, before, group)
        norm = norm_of(W)
        radius = (norm + _inner(step, W) / nonzero(norm)).clamp(min=LEAST_RADIUS)
        pinned = with_norm(W + step, radius)
        if self.weight_decay:
            shrinks = (step * W < 0).to(pinned.dtype)
            pinned = pinned * (1 - group["lr"] * self.weight_decay * shrinks)
        moved = norm_of((step != 0).to(step.dtype)) > 0
        return torch.where(moved, pinned.to(weight.dtype), weight)


def _inner(X: Tensor, Y: Tensor) -> Tensor:
    """Return <X, Y> of each matrix [..., 1, 1], of vectors [1], or of numbers []."""
    return reduced((X * Y).sum(dim=(-2, -1)[2 - min(X.ndim, 2) :], keepdim=True))
