"""How large the steps of a rule are, where that does not depend on the gradients.

Found by trying the rule on small random matrices of the same kind (tall, wide or square), so that
it holds for a rule that nobody has listed: if the results have the norm of a polar factor,
sqrt(min(m, n)), at every size and for every spectrum, the rule is taken to end in one; if they have
one and the same root mean square, in a renormalisation.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import log10, sqrt

import torch

from polarlight.rule import UpdateRule

_SIZES = (8, 16)
_LARGEST_RATIO = 4
_STEPS = 2
_POLAR = (0.4, 1.4)
"""Squared norm of an approximate polar factor over the exact one's: Newton-Schulz is not exact."""


@lru_cache(maxsize=1024)
def update_rms(rule: UpdateRule, m: int, n: int) -> float | None:
    """Root mean square of the entries of what multiplies -lr, for full-rank m x n momenta.

    Returns:
        The number; None if it depends on the momentum.
    """
    if not m or not n:
        return None
    trials = list(_trials(rule, m, n))
    polar = [rms**2 * max(shape) for shape, rms in trials]
    if min(polar) > _POLAR[0] and max(polar) < _POLAR[1]:
        return rule.scale(m, n) / sqrt(max(m, n))
    sizes = [rms for _, rms in trials]
    if max(sizes) - min(sizes) < 1e-2 * max(sizes):
        return rule.scale(m, n) * sizes[0]
    return None


def _trials(rule: UpdateRule, m: int, n: int) -> Iterator[tuple[torch.Size, float]]:
    """Shapes, and the root mean square of the rule's unscaled direction there, step by step."""
    ratio = min(max(m, n) / min(m, n), _LARGEST_RATIO)
    generator = torch.Generator("cpu").manual_seed(0)
    for short in _SIZES:
        long = max(round(short * ratio), short + (m != n))
        shape = torch.Size((long, short) if m > n else (short, long))
        for smallest in (0.03, 1.0):
            spectrum = torch.logspace(log10(smallest), 0, short, dtype=torch.float64)
            spectrum = spectrum[:, None] if m < n else spectrum
            buffers = {
                name: torch.zeros(size, dtype=torch.float64)
                for name, size in rule.buffer_shapes(shape).items()
            }
            for _ in range(_STEPS):
                X = torch.randn(shape, generator=generator, dtype=torch.float64)
                with torch.no_grad():
                    direction = rule.direction(smallest * spectrum * X, buffers)
                yield shape, (direction / rule.scale(*shape)).square().mean().sqrt().item()
