"""A first gradient of another size than all later ones: statistics are kept in units of it.

Track 3's radius pin leaves projections of norm 1e-8 after the first step, so that first gradients
of other matrices are 1e-9 of their later size.
"""

import pytest
import torch

from polarlight import SpectralOptimizer
from tests.contracts.catalogue import SHIPPED

STEPS, SHAPE = 12, (24, 16)


def last_step(rule, first):
    """The last step after a first gradient that is multiplied by `first`."""
    p = torch.nn.Parameter(torch.zeros(SHAPE))
    optimizer = SpectralOptimizer([p], lr=0.01, rule=rule)
    for t in range(STEPS):
        generator = torch.Generator().manual_seed(t)
        p.grad = torch.randn(SHAPE, generator=generator) * (1.0 if t else first)
        before = p.detach().clone()
        optimizer.step()
    return p.detach() - before


@pytest.mark.parametrize("first", [1e-10, 1e10])
@pytest.mark.parametrize("name", SHIPPED)
def test_steps_stay_finite_after_a_first_gradient_of_another_size(name, first):
    assert last_step(SHIPPED[name], first).isfinite().all()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_tiny_first_gradient_is_forgotten(name):
    """Twelve steps later the step has the size that it has after an ordinary first gradient."""
    ordinary, tiny = (last_step(SHIPPED[name], first).norm() for first in (1.0, 1e-10))
    assert 0.5 < (tiny / ordinary).item() < 2
