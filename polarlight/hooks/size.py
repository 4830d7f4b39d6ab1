"""Sizes kept against the weight's: a norm that stays, a step that is never too small.

    hyperball:   W <- |W| Z / |Z|,   Z = W - lr |W| U / |U|
    floor:       U <- U max(1, floor |W| / |U|)

Norms are Frobenius norms of each matrix. Sources: hyperball: MuonH and AdamH among the track-3
records of modded-nanogpt, dion's `MuonH`, NVIDIA-NeMo/Emerging-Optimizers; the floor on update over
weight ("u/w floor", 0.35): the same records, from number 9 on.
Deviations: the hyperball's radius is the norm of the step before, not of the first; without
rounding that is the same, and no state is needed.
"""

from dataclasses import dataclass

from torch import Tensor

from polarlight.hooks.attach import Group
from polarlight.linalg.matrices import at_least_float32, frobenius_norm, nonzero


@dataclass(frozen=True, slots=True)
class HyperBall:
    """Keeps each matrix's norm; the learning rate is the length of a step against it.

    The optimizer's weight decay has no effect then, and its scale neither. A zero matrix stays
    zero: start from weights that are not.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> handle = polarlight.hooks.attach(optimizer, polarlight.hooks.HyperBall())
        >>> before = model[0].weight.norm()
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> torch.allclose(model[0].weight.norm(), before)
        True
    """

    def __call__(self, weight: Tensor, before: Tensor, group: Group) -> Tensor:
        """A step of length lr |W| along the optimizer's, drawn back to the norm |W|."""
        W, step = at_least_float32(before), _step(weight, before, group)
        radius = frobenius_norm(W)
        Z: Tensor = W + group["lr"] * radius * step / nonzero(frobenius_norm(step))
        return (Z * (radius / nonzero(frobenius_norm(Z)))).to(weight.dtype)


@dataclass(frozen=True, slots=True)
class UpdateFloor:
    """Lengthens directions that are small against their weight.

    Attributes:
        floor: Least norm of what multiplies -lr over the weight's norm, > 0.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> handle = polarlight.hooks.attach(optimizer, polarlight.hooks.UpdateFloor(0.35))
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
    """

    floor: float

    def __post_init__(self) -> None:
        if not self.floor > 0:
            raise ValueError(f"floor must be > 0, got {self.floor}")

    def __call__(self, weight: Tensor, before: Tensor, group: Group) -> Tensor:
        """The weight after a step that is long enough; a zero step stays zero."""
        W, step = at_least_float32(before), _step(weight, before, group)
        least = group["lr"] * self.floor * frobenius_norm(W)
        factor: Tensor = (least / nonzero(frobenius_norm(step))).clamp_min(1)
        return (at_least_float32(weight) + (factor - 1) * step).to(weight.dtype)


def _step(weight: Tensor, before: Tensor, group: Group) -> Tensor:
    """-lr times the direction: the change without its decay."""
    W = at_least_float32(before)
    step: Tensor = at_least_float32(weight) - W + group["lr"] * group.get("weight_decay", 0.0) * W
    return step
