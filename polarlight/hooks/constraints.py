"""Constraints on a weight: a constant norm, a least step, router rows that sum to zero.

    hyperball:   W <- |W| Z / |Z|,   Z = W - lr |W| U / |U|
    floor:       U <- U max(1, floor |W| / |U|), of the matrix or of each row
    router:      W <- W - mean of its rows

A softmax over experts does not depend on what all rows of a router [experts, width] have in common;
a step along it only lets the weights grow. Not for sigmoid routers, which do depend on it.

Norms are Frobenius norms of each matrix. A vector that `where` chooses is one matrix of one row for
the norms; a router's bias [experts] is one column.

Sources: hyperball: MuonH and AdamH among the track-3 records of modded-nanogpt, dion's `MuonH`,
NVIDIA-NeMo/Emerging-Optimizers; the floor on update over weight ("u/w floor", 0.35): the same
records, from number 9 on, by rows in number 46. The router: the symmetry-compatible principle
(2026), arXiv 2605.18106, shift symmetry.
Deviations: the hyperball's radius is the norm of the step before, not of the first; without
rounding that is the same, and no state is needed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.hooks.attach import FromGroup, Group, HookNumber, number_of
from polarlight.linalg.matrices import at_least_float32, frobenius_norm, nonzero
from polarlight.linalg.rows import row_norms
from polarlight.lookup import arguments_checked


@dataclass(frozen=True, slots=True)
class HyperBall:
    """Keep each matrix's norm; the learning rate is the step's length over that norm.

    The optimizer's weight decay and scale have no effect then. A zero matrix stays zero: start from
    nonzero weights.

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
        """Return a step of length lr |W| along the optimizer's, rescaled to the norm |W|."""
        W, step = at_least_float32(before), step_of(weight, before, group)
        radius = norm_of(W)
        return with_norm(W + group["lr"] * with_norm(step, radius), radius).to(weight.dtype)


@arguments_checked
@dataclass(frozen=True, slots=True)
class UpdateFloor:
    """Lengthen directions whose norm is small against their weight's.

    Attributes:
        floor: Least norm of the direction over the weight's norm, > 0; a `FromGroup` follows a
            schedule.
        rows: Hold each row to the floor, instead of the matrix.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> handle = polarlight.hooks.attach(optimizer, polarlight.hooks.UpdateFloor(0.35))
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
    """

    floor: HookNumber
    rows: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.floor, FromGroup) and not self.floor > 0:
            raise ValueError(f"floor must be > 0, got {self.floor}")

    def __call__(self, weight: Tensor, before: Tensor, group: Group) -> Tensor:
        """Return the weight after a step of at least lr * floor * |W|; zero steps stay zero."""
        W, step = at_least_float32(before), step_of(weight, before, group)
        norm = row_norms if self.rows and W.ndim > 1 else norm_of
        least = group["lr"] * number_of(self.floor, group) * norm(W)
        factor: Tensor = (least / nonzero(norm(step))).clamp(min=1)
        return (at_least_float32(weight) + (factor - 1) * step).to(weight.dtype)


@dataclass(frozen=True, slots=True)
class CentreRouter:
    """Subtract the mean of the rows, which leaves a softmax router's output unchanged.

    Examples:
        >>> import torch, polarlight
        >>> router = torch.nn.Linear(8, 4, bias=False)
        >>> optimizer = torch.optim.AdamW(router.parameters())
        >>> handle = polarlight.hooks.attach(optimizer, polarlight.hooks.CentreRouter())
        >>> router(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> bool(router.weight.mean(dim=0).abs().max() < 1e-6)
        True
    """

    def __call__(self, weight: Tensor, before: Tensor, group: Group) -> Tensor:
        """Return the centred weight [..., experts, width], or bias [experts]."""
        return weight - weight.mean(dim=-2 if weight.ndim > 1 else -1, keepdim=True)


def norm_of(X: Tensor) -> Tensor:
    """Return the norm of each matrix [..., 1, 1], of a vector [1], or of a number []."""
    return reduced(frobenius_norm(X) if X.ndim > 1 else torch.linalg.vector_norm(X, keepdim=True))


def reduced(x: Tensor) -> Tensor:
    """Return x, a DTensor with its pending sums added: torch 2.7 adds some of them wrongly."""
    placements = getattr(x, "placements", None)
    if placements is None:
        return x
    from torch.distributed.tensor import Replicate  # torch has it loaded: x is one

    whole = [Replicate() if p.is_partial() else p for p in placements]
    return x.redistribute(placements=whole)  # type: ignore[attr-defined, no-any-return]


def with_norm(X: Tensor, norm: Tensor) -> Tensor:
    """Return X rescaled to a norm in the shape of `norm_of`; zero stays zero."""
    rescaled: Tensor = norm * X / nonzero(norm_of(X))
    return rescaled


def step_of(weight: Tensor, before: Tensor, group: Group) -> Tensor:
    """Return -lr times the direction: the weight's change without its decay."""
    W = at_least_float32(before)
    step: Tensor = at_least_float32(weight) - W + group["lr"] * group.get("weight_decay", 0.0) * W
    return step
