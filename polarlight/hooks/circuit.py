"""Circuit-Muon: the steps of a head's value and output projections are made for each other.

    s_V = (|V_h|^2 / h + damping)^(-1/2), s_O likewise;   dV_h <- s_O dV_h,   dO_h <- s_V dO_h
    each of dV and dO back to its own norm
    x = (<V_h, dV_h> - <O_h, dO_h>) / (|V_h|^2 + |O_h|^2 + 2 h damping),   dV -= x V,   dO += x O

V_h are the h rows of a head in the value projection, O_h its h columns in the output projection.
What a head writes is O_h V_h: it does not change where V_h grows as O_h shrinks. A leg takes larger
steps where the other one is small, and the part that only trades norms is taken out.

Source: results 41 and 43 of modded-nanogpt's track 3 (2026).
Deviations: none. The damping is in units of squared weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from polarlight.hooks.attach import Group
from polarlight.hooks.constraints import step_of
from polarlight.linalg.matrices import at_least_float32, frobenius_norm, nonzero
from polarlight.lookup import arguments_checked, check_optimizer


@arguments_checked
@dataclass(frozen=True, slots=True, eq=False)
class Circuit:
    """The two projections of one attention layer.

    Attributes:
        value: Weight [heads * h, width].
        output: Weight [width, heads * h].
        heads: Number of heads.

    Examples:
        >>> import torch
        >>> from polarlight.hooks import Circuit
        >>> Circuit(torch.ones(8, 16), torch.ones(16, 8), heads=2).heads
        2
    """

    value: Tensor
    output: Tensor
    heads: int

    def __post_init__(self) -> None:
        rows, columns = self.value.shape[0], self.output.shape[1]
        if self.heads < 1 or rows != columns or rows % self.heads:
            raise ValueError(
                f"{self.heads} heads do not fit a value weight of {rows} rows and an output weight "
                f"of {columns} columns; both need heads * size of them"
            )


def coupled(
    V: Tensor, out: Tensor, dV: Tensor, dO: Tensor, heads: int, damping: float
) -> tuple[Tensor, Tensor]:
    """Return the coupled directions of both projections.

    Args:
        V: Value weight, [heads * h, width].
        out: Output weight, [width, heads * h].
        dV: Its direction.
        dO: Its direction.
        heads: Number of heads.
        damping: Added to the mean squared weight.
    """
    size = V.shape[0] // heads
    v, o, a, b = (X.unflatten(0, (heads, size)) for X in (V, out.mT, dV, dO.mT))  # [heads, h, n]
    norms = [X.square().sum(dim=(1, 2), keepdim=True) for X in (v, o)]  # [heads, 1, 1]
    scales = [(norm / size + damping).rsqrt() for norm in norms]
    a, b = a * scales[1], b * scales[0]
    a, b = (
        X * (frobenius_norm(d) / nonzero(frobenius_norm(X.flatten(0, 1))))
        for X, d in ((a, dV), (b, dO))
    )
    traded = (v * a).sum(dim=(1, 2), keepdim=True) - (o * b).sum(dim=(1, 2), keepdim=True)
    x = traded / (norms[0] + norms[1] + 2 * size * damping)
    return (a - x * v).flatten(0, 1), (b + x * o).flatten(0, 1).mT


@arguments_checked
class CircuitMuon:
    """Couples the steps of value and output projections; attach it before other weight hooks.

    Args:
        circuits: The pairs.
        damping: Added to the mean squared weight of a head, > 0.

    Examples:
        >>> import torch, polarlight
        >>> from polarlight.hooks import Circuit, CircuitMuon
        >>> value, output = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        >>> optimizer = polarlight.Muon([value.weight, output.weight], lr=0.02)
        >>> circuits = [Circuit(value.weight, output.weight, heads=2)]
        >>> handles = CircuitMuon(circuits).attach(optimizer)
        >>> output(value(torch.ones(2, 8))).square().mean().backward()
        >>> optimizer.step()
    """

    def __init__(self, circuits: Sequence[Circuit], damping: float = 1e-3) -> None:
        if not damping > 0:
            raise ValueError(f"damping must be > 0, got {damping}")
        self.circuits, self.damping = circuits, damping
        self._before: list[tuple[Tensor, Tensor]] = []

    def attach(self, optimizer: Optimizer) -> tuple[Any, Any]:
        """Couple every step of the optimizer; returns two handles with `remove()`."""
        check_optimizer("attach", optimizer, hooked=True)
        return (
            optimizer.register_step_pre_hook(lambda *_: self.remember()),
            optimizer.register_step_post_hook(lambda *_: self.couple(optimizer)),
        )

    def remember(self) -> None:
        """Keep the weights before a step."""
        self._before = [
            (c.value.detach().clone(), c.output.detach().clone()) for c in self.circuits
        ]

    @torch.no_grad()
    def couple(self, optimizer: Optimizer) -> None:
        """Replace the steps that were made by the coupled ones."""
        groups: dict[Tensor, Group] = {
            p: group for group in optimizer.param_groups for p in group["params"]
        }
        for circuit, before in zip(self.circuits, self._before, strict=True):
            weights = circuit.value, circuit.output
            pair = [groups[p] for p in weights]
            still = any(isinstance(g["lr"], float) and g["lr"] == 0 for g in pair)
            if still or any(p.grad is None for p in weights):
                continue
            rates = [group["lr"] for group in pair]
            steps = [
                step_of(p.detach(), W, g) for p, W, g in zip(weights, before, pair, strict=True)
            ]
            dV, dO = (step / -rate for step, rate in zip(steps, rates, strict=True))
            V, out = (at_least_float32(W) for W in before)
            new = coupled(V, out, dV, dO, circuit.heads, self.damping)
            for p, d, rate, step in zip(weights, new, rates, steps, strict=True):
                p.copy_(at_least_float32(p.detach()) - step - rate * d)
        self._before = []
