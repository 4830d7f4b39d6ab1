"""Routers whose rows sum to zero.

A softmax over experts does not see what all rows of a router [experts, width] have in common; a
step that moves it only lets the weights grow. Not for sigmoid routers, which do see it.

Source: the symmetry-compatible principle (2026), arXiv 2605.18106, the router's shift symmetry.
"""

from dataclasses import dataclass

from torch import Tensor

from polarlight.hooks.attach import Group


@dataclass(frozen=True, slots=True)
class CentreRouter:
    """Takes the mean of the rows out of the weight; what a softmax router computes stays.

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
        """The centred weight, [..., experts, width]."""
        return weight - weight.mean(dim=-2, keepdim=True)
