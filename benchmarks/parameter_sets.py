"""Shapes that optimizers are timed on, and gradients that look like training's."""

import torch
from torch import nn

_GPT2_LAYER = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
_QWEN_LAYER = [
    (2048, 1024),
    (1024, 1024),
    (1024, 1024),
    (1024, 2048),
    (3072, 1024),
    (3072, 1024),
    (1024, 3072),
]

SETS: dict[str, list[tuple[int, int]]] = {
    "gpt2-small": _GPT2_LAYER * 12,
    "gpt2-small/4": _GPT2_LAYER * 3,
    "gpt2-small/12": _GPT2_LAYER,
    "qwen3-0.6b/14": _QWEN_LAYER * 2,
    "small": [(128, 512), (512, 128), (128, 128), (64, 256)] * 50,
    "experts/8": [(1024, 512)] * 8,
    "square": [(1280, 1280)] * 2,
    "tall": [(5120, 1280)],
    "tiny": [(8, 32), (32, 8), (8, 8), (4, 16)] * 50,
}
"""GPT-2 small, a quarter and a layer of it; two layers of Qwen3-0.6B; 200 matrices to 128 x 512.

The 200 tiny ones take no time to compute: a step on them is what everything else costs.
"""


def parameters(name: str, device: str) -> list[nn.Parameter]:
    """Matrices with gradients, equal for equal names: sizes of rows and columns fall off."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for m, n in SETS[name]:
        p = nn.Parameter(0.02 * torch.randn(m, n, generator=generator).to(device))
        rows = torch.logspace(0, -2, m)[:, None] * torch.logspace(0, -2, n)
        p.grad = (torch.randn(m, n, generator=generator) * rows).to(device)
        found.append(p)
    return found
