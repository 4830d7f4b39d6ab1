"""The small inputs of the numeric oracles, and a rule's updates on them."""

import torch
from torch import Tensor

import polarlight
from polarlight.rule import Rule

A = torch.tensor([[3.0, 0, 1], [1, 2, -2]], dtype=torch.float64)
B = torch.tensor([[1.0, -1, 0], [2, 1, 1]], dtype=torch.float64)
W = torch.tensor([[1.0, 2, 0], [0, 1, -1]], dtype=torch.float64)
POLAR_A = torch.tensor(
    [[0.935372, -0.034451, 0.351983], [0.283082, 0.669516, -0.686741]], dtype=torch.float64
)
SIX_DIGITS = {"rtol": 0, "atol": 1.01e-6}
"""Of numbers that are given to six decimals, and were computed with absolute floors of 1e-8."""


def updates(rule: Rule, *gradients: Tensor, momentum: float = 0.95) -> list[Tensor]:
    """Return what the rule multiplies by -lr, step by step, from zero state."""
    p = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = polarlight.SpectralOptimizer([p], lr=1.0, momentum=momentum, rule=rule)
    found = []
    for G in gradients:
        before = p.detach().clone()
        p.grad = G.clone()
        optimizer.step()
        found.append(before - p.detach())
    return found


def numbers(*rows: list[float]) -> Tensor:
    """Return a float64 matrix."""
    return torch.tensor(rows, dtype=torch.float64)
