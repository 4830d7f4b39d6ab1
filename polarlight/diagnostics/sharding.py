"""Comparison of sharded and unsharded training: both models side by side, entry by entry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}
"""Largest difference that is rounding: products of a batch may add in another order."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Distance of one sharded parameter from the unsharded one after some steps.

    Attributes:
        name: The parameter.
        layout: The sharded parameter's placements.
        largest: Largest difference of an entry, relative to the largest change of an entry since
            the start, or to 1 where that is more.
        allowed: Largest difference due to rounding, by the dtype.
    """

    name: str
    layout: str
    largest: float
    allowed: float

    @property
    def same(self) -> bool:
        """True if the difference is at most that of rounding; False for NaN."""
        return self.largest <= self.allowed


def check_sharding(
    whole: nn.Module,
    sharded: nn.Module,
    make_optimizer: Callable[[nn.Module], Optimizer],
    *,
    steps: int = 5,
    seed: int = 0,
) -> list[Difference]:
    """Train both models with equal random gradients and compare their parameters.

    Every process calls this, in an initialised process group. Forward and backward are not used:
    the comparison is of the optimizer alone.

    Args:
        whole: The unsharded model.
        sharded: The same model with equal weights, as `fully_shard`, `parallelize_module` or
            `distribute_tensor` made it; or plain, with an optimizer that shares the work.
        make_optimizer: Makes the optimizer of either.
        steps: Optimizer steps.
        seed: Of the gradients.

    Raises:
        ValueError: If the models differ before the first step, or in the names of their parameters.
    """
    ours, theirs = dict(sharded.named_parameters()), dict(whole.named_parameters())
    if list(ours) != list(theirs):
        odd = sorted(set(ours) ^ set(theirs)) or list(ours)
        raise ValueError(f"the models differ in the names or the order of parameters: {odd[:5]}")
    start = {name: p.detach().clone() for name, p in theirs.items()}
    unequal = [name for name, p in ours.items() if not torch.equal(full(p), start[name])]
    if unequal:
        raise ValueError(f"the models start with different weights: {unequal[:5]}")
    optimizers = make_optimizer(whole), make_optimizer(sharded)
    for step in range(steps):
        for place, (name, p) in enumerate(theirs.items()):
            p.grad = gradient(p, seed=seed + 1000 * step + place)
            ours[name].grad = shard_like(p.grad, ours[name])
        for optimizer in optimizers:
            optimizer.step()
    return [_difference(name, p, theirs[name], start[name]) for name, p in ours.items()]


def assert_same_sharded(
    whole: nn.Module,
    sharded: nn.Module,
    make_optimizer: Callable[[nn.Module], Optimizer],
    *,
    steps: int = 5,
    seed: int = 0,
) -> None:
    """Raise AssertionError with a table if `check_sharding` finds a difference.

    Raises:
        AssertionError: If a parameter differs by more than rounding.
        ValueError: As `check_sharding`.
    """
    found = check_sharding(whole, sharded, make_optimizer, steps=steps, seed=seed)
    if not all(difference.same for difference in found):
        raise AssertionError(f"sharded and whole training differ:\n{table(found)}")


def table(differences: Sequence[Difference]) -> str:
    """Format one line per parameter, the largest difference first."""
    worst = sorted(differences, key=lambda d: -(d.largest / d.allowed))
    width = max((len(d.name) for d in worst), default=0)
    return "\n".join(
        f"{d.name.ljust(width)}  {d.largest:.1e} of {d.allowed:.0e}  "
        f"{'same' if d.same else 'DIFFERENT'}  {d.layout}"
        for d in worst
    )


def gradient(p: Tensor, seed: int) -> Tensor:
    """Draw a gradient for p, equal on every process, with rows of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    sizes = torch.rand(*p.shape[:-1], 1, generator=generator, dtype=torch.float64) if p.ndim else 1
    return (noise * sizes).to(p.device, p.dtype)


def shard_like(x: Tensor, parameter: Tensor) -> Tensor:
    """Return x sharded like the parameter, or a clone for a plain one; sends nothing."""
    if not hasattr(parameter, "device_mesh"):
        return x.clone()
    from torch.distributed.tensor import distribute_tensor

    on_mesh: Any = parameter
    mesh, placements = on_mesh.device_mesh, on_mesh.placements
    return distribute_tensor(x.clone(), mesh, placements, src_data_rank=None)


def full(p: Tensor) -> Tensor:
    """Return the detached parameter as a plain tensor, all-gathered if it is sharded."""
    p = p.detach()
    return p.full_tensor() if hasattr(p, "full_tensor") else p


def _difference(name: str, ours: Tensor, theirs: Tensor, start: Tensor) -> Difference:
    """Compare a sharded parameter with the unsharded one, relative to the latter's change."""
    moved = max((theirs.detach() - start).abs().max().item(), 1.0) if start.numel() else 1.0
    far = (full(ours) - theirs.detach()).abs()
    largest = far.max().item() / moved if far.numel() else 0.0
    layout = ", ".join(map(str, getattr(ours, "placements", ["plain"])))
    return Difference(name, layout, largest, TOLERANCE[theirs.dtype])
