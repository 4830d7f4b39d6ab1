"""Weight decay only where the step shrinks an entry, and decay coupled to the schedule.

    cautious:    W <- W - lr wd W   only where the step shrinks the entry already
    coupled:     wd_t = wd lr_t / lr_max

Sources: Liang et al., "Cautious optimizers" (2024), arXiv 2411.16085, and Chen et al., "Cautious
weight decay" (2025), arXiv 2510.12402. The coupled form is practice, without a paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from polarlight.hooks.attach import Group
from polarlight.lookup import arguments_checked, check_optimizer


@arguments_checked
@dataclass(frozen=True, slots=True)
class CautiousDecay:
    """Decoupled weight decay on the entries whose magnitude the step reduces.

    Set the optimizer's own weight decay to 0: the hook adds to it.

    Attributes:
        weight_decay: Entries are multiplied by 1 - lr * weight_decay; at least 0.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> handle = polarlight.hooks.attach(optimizer, polarlight.hooks.CautiousDecay(0.1))
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
    """

    weight_decay: float

    def __post_init__(self) -> None:
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be >= 0, got {self.weight_decay}")

    def __call__(self, weight: Tensor, before: Tensor, group: Group) -> Tensor:
        """Return the weight with lr * weight_decay * before subtracted where it shrinks."""
        shrinks = (weight - before) * before < 0
        return weight - torch.where(shrinks, group["lr"] * self.weight_decay * before, 0)


def couple_decay_to_schedule(
    optimizer: Optimizer, full: float | Sequence[float] | None = None
) -> Any:
    """Multiply every group's weight decay by lr / lr_max before each step.

    The decay per step is lr * weight_decay, hence falls as lr squared.

    Args:
        optimizer: Any torch optimizer; its `weight_decay` entries are those at the full rate, and
            each step writes them.
        full: Full learning rate, or one per group; None takes each group's `initial_lr`, which
            torch's schedulers write, or without it the present `lr`.

    Returns:
        A handle whose `remove()` leaves the present decay.

    Raises:
        ValueError: If a full learning rate is not positive, or there are not as many as groups.
        TypeError: If `optimizer` is none.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02, weight_decay=0.1)
        >>> handle = polarlight.hooks.couple_decay_to_schedule(optimizer)
        >>> optimizer.param_groups[0]["lr"] = 0.01  # half of the full rate
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.param_groups[0]["weight_decay"]
        0.05
    """
    check_optimizer("couple_decay_to_schedule", optimizer, hooked=True)
    groups = optimizer.param_groups
    if full is None:
        rates = [float(group.get("initial_lr", group["lr"])) for group in groups]
    else:
        rates = [full] * len(groups) if isinstance(full, int | float) else list(full)
    if len(rates) != len(groups) or not all(rate > 0 for rate in rates):
        raise ValueError(f"full must be > 0, one for all {len(groups)} groups or each, got {full}")
    decays = [float(group["weight_decay"]) for group in groups]

    def couple(*_: Any) -> None:
        """Set every group's weight decay for the coming step."""
        for group, rate, decay in zip(optimizer.param_groups, rates, decays, strict=True):
            group["weight_decay"] = decay * group["lr"] / rate

    return optimizer.register_step_pre_hook(couple)
