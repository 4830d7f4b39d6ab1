"""Ten steps of a rule beside its float64 reference."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

import polarlight
from polarlight.rule import Rule
from tests.matrices import gaussian

EXACT = polarlight.linalg.ExactPolar(dtype=torch.float64)
NUMBERS = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9}

QUINTIC = polarlight.linalg.NewtonSchulz(polarlight.linalg.schedules.SIMPLE_QUINTIC)

polars = pytest.mark.parametrize("polar", [QUINTIC, EXACT], ids=str)

NO_FLOOR = 1e-9
"""A relative floor that enters squared: at 1e-18 it is beyond float64, as in the references."""

ROUNDING = 1e-11
"""Float64 rounding. 2e-15 is the worst of all rules and shapes; the margin is for other linear
algebra libraries: rounding may grow with the condition of the momentum, 4e3 on the squares."""

FLOOR = 3e-8
"""The default floor, 1e-4 of the rms row norm, enters squared and halved: 5e-9 of a row of that
norm, 7e-8 of the smallest row here. 3e-9 of the way is the worst of all rules and shapes."""


def distance(rule: Rule, reference: Callable, shape: tuple[int, ...], steps: int = 10) -> float:
    """Largest distance between the weights of rule and reference, in units of the way travelled."""
    start = gaussian(*shape, seed=100)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = polarlight.SpectralOptimizer([parameter], rule=rule, **NUMBERS)
    W, state, worst = start.numpy(), {}, 0.0
    for t in range(steps):
        G = gaussian(*shape, seed=t)
        parameter.grad = G.clone()
        optimizer.step()
        W = reference(W, G.numpy(), state, **NUMBERS)
        error = np.linalg.norm(parameter.detach().numpy() - W)
        worst = max(worst, error / np.linalg.norm(W - start.numpy()))
    return worst
