"""Muown: directions and norms of a weight's rows trained apart, the directions by Muon.

    W = g v / |v|, row by row;   dg = sum_j G u,   dv = (g / |v|) (G - u dg),   u = v / |v|
    v <- v - lr U(dv),   g <- Adam(dg),   W <- g v / |v|
    |v| is then not the new norm but grows by a schedule, which slows the turning down:
    |v| = first + (target - first) (t / (length - 1))^power

U is the direction of whatever rule the optimizer has, from gradients dv: Muon in the results. Rows
that start from zero take g = |v| = sqrt(0.33).

Source: arXiv 2605.10797 (2026); results 23 and 31 of modded-nanogpt's track 3.
Deviations: a row of dv that is no more than the rounding of G - u dg is zero; a gradient along its
weight would otherwise be a step of full size in a random direction.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from polarlight.hooks.attach import Group
from polarlight.hooks.averaging import Averaged
from polarlight.hooks.constraints import step_of
from polarlight.hooks.gradients import GradientHook
from polarlight.linalg.matrices import at_least_float32, nonzero
from polarlight.linalg.rows import row_norms
from polarlight.lookup import arguments_checked

ZERO_ROW = 0.33**0.5
"""Norm that a row of zeros starts with."""

BETAS, EPS = (0.9, 0.95), 1e-8
"""Adam's, for the norms of rows."""

ROUNDING = 16
"""Machine epsilons of |G| below which a row of G - u dg is rounding."""


@arguments_checked
class Muown(GradientHook):
    """Row-wise weight normalisation inside the step of an optimizer; no weight decay acts.

    Args:
        averaged: Named weights of the optimizer, [m, n].
        target: |v| at the end, of each weight's name.
        length: Steps of the schedule of |v|, at least 2.
        power: Of the schedule, > 0.

    Memory: a float32 copy of the weights during a step, four numbers per row.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> named = [("0.weight", model[0].weight)]
        >>> handles = polarlight.hooks.Muown(named, lambda name: 2.5, length=100).attach(optimizer)
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        averaged: Averaged,
        target: Callable[[str], float],
        *,
        length: int,
        power: float = 1.2,
    ) -> None:
        if length < 2:
            raise ValueError(f"length must be >= 2, got {length}")
        if not power > 0:
            raise ValueError(f"power must be > 0, got {power}")
        super().__init__(averaged, ("size", "first", "radius", "mean", "square"))
        self.target, self.length, self.power = target, length, power
        self._before: dict[str, Tensor] = {}
        self._of_size: dict[str, Tensor] = {}
        for name, p in self.parameters.items():
            norms = row_norms(at_least_float32(p.detach()))  # [m, 1]
            norms = torch.where(norms == 0, ZERO_ROW, norms)
            for kind in ("size", "first", "radius"):
                self.kept[kind][name] = norms.clone()
            for kind in ("mean", "square"):
                self.kept[kind][name] = torch.zeros_like(norms)

    def gradient(self, name: str, p: Tensor, group: Group) -> Tensor:
        """Return dv, and keep dg for the end of the step."""
        assert p.grad is not None
        W, G = (at_least_float32(x) for x in (p.detach(), p.grad))
        g, radius = self.kept["size"][name], self.kept["radius"][name]
        u = W / g  # [m, n], rows of norm 1, or 0
        dg = (G * u).sum(dim=-1, keepdim=True)  # [m, 1]
        self._before[name], self._of_size[name] = W.clone(), dg
        D = G - u * dg  # [m, n], across u
        noise = ROUNDING * torch.finfo(D.dtype).eps * row_norms(G)
        return torch.where(row_norms(D) <= noise, 0.0, g / radius * D).to(p.grad.dtype)  # NaN stays

    def after_step(self, name: str, p: Tensor, group: Group) -> None:
        """Put directions and norms together."""
        W, dg = self._before.pop(name), self._of_size.pop(name)
        lr = group["lr"]
        if not isinstance(lr, Tensor) and lr == 0:
            return
        kept = {kind: tensors[name] for kind, tensors in self.kept.items()}
        v = W / kept["size"] * kept["radius"] + step_of(p.detach(), W, group)
        count = self.steps + 1
        kept["mean"].lerp_(dg, 1 - BETAS[0])
        kept["square"].lerp_(dg.square(), 1 - BETAS[1])
        mean, square = (
            kept[kind] / (1 - beta**count)
            for kind, beta in zip(("mean", "square"), BETAS, strict=True)
        )
        kept["size"].sub_(lr * mean / (square.sqrt() + EPS))
        p.copy_(kept["size"] * v / nonzero(row_norms(v)))
        done = min(self.steps / (self.length - 1), 1.0) ** self.power
        kept["radius"].copy_(kept["first"] + (self.target(name) - kept["first"]) * done)
