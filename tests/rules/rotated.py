"""Fifty steps of a rule that rotates gradients, beside its float64 reference."""

from collections.abc import Callable

import numpy as np
import torch

from polarlight import SpectralOptimizer
from polarlight.linalg.slot import Buffers
from polarlight.rule import UpdateRule
from tests.matrices import gaussian

BASES = ("left_basis", "right_basis")


def memory(rule: UpdateRule, M: torch.Tensor) -> Buffers:
    """Fresh buffers for a matrix or a batch."""
    return {name: M.new_zeros(shape) for name, shape in rule.buffer_shapes(M.shape).items()}


def directions(rule: UpdateRule, Gs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return a rule's directions for a sequence of gradients."""
    buffers = memory(rule, Gs[0])
    return [rule.direction(G, buffers) for G in Gs]


def distance(
    rule: UpdateRule,
    reference: Callable,
    shape: tuple[int, int],
    draw: Callable = gaussian,
    steps: int = 50,
) -> float:
    """Largest distance between the weights of rule and reference, in units of the way travelled.

    The eigenvectors of the longer side's first factor are not unique; the reference takes the
    rule's, which `test_the_first_bases_are_eigenvectors` holds to what they must be.
    """
    start = gaussian(*shape, seed=100)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = SpectralOptimizer([parameter], lr=0.01, rule=rule)
    W, state, worst = start.numpy(), {}, 0.0
    for t in range(steps):
        G = draw(*shape, seed=t)
        parameter.grad = G.clone()
        optimizer.step()
        if t == 0 and shape[0] != shape[1]:
            state["Q"] = tuple(optimizer.state[parameter][name].numpy().copy() for name in BASES)
        W = reference(W, G.numpy(), state, lr=0.01, weight_decay=0.0)
        error = np.linalg.norm(parameter.detach().numpy() - W)
        worst = max(worst, error / max(np.linalg.norm(W - start.numpy()), 1e-3))
    return worst
