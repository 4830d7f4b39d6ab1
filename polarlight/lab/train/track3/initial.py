"""Initial weights of the benchmark's results.

    Z     "proj" in the name: 0; embedding N(0, 1); other weights N(0, 0.33 / fan_in); biases 0
    T     weights and biases uniform within 1 / sqrt(fan_in), "proj": 0; embedding N(0, 1)
    H     T, but attn.proj, mlp.fc, mlp.proj are 1.25, 1.5, 3 times such weights; "proj" biases 0
    N     normal weights of variance 0.33 / fan_in with the factors of H; biases and head 0
    K     normal weights of variance 1 / (3 fan_in) with the factors of H; biases and head as T
          would have them without its zeros
    P     T; mlp.fc smaller with depth, by 0.3 in the last block; gains 1 -+ 0.14 by random signs
    P125  P with 0.125; the second half of the blocks in pairs with opposite signs
    P0    P with gains 1 and biases 0

Gains are 1 elsewhere. The seed alone decides; torch's global generator is not moved. Other
generators than the benchmark's: distributions are the same, weights are not.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

VARIANCE = 0.33
"""Of normal initial weights, over fan_in."""

SCHEMES = ("Z", "T", "H", "N", "K", "P", "P125", "P0")

_FACTORS = {"attn.proj.weight": 1.25, "mlp.fc.weight": 1.5, "mlp.proj.weight": 3.0}
_GAINS = {"P": 0.14, "P125": 0.125}
SHALLOWER = 0.3
"""Fraction that the last block's mlp.fc is smaller by, under P."""


@torch.no_grad()
def initialise(model: nn.Module, scheme: str, seed: int, *, layers: int, head_dim: int) -> None:
    """Set all weights of the benchmark's model.

    Raises:
        ValueError: If the scheme is unknown.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"initial must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    generator = torch.Generator().manual_seed(seed)
    named = dict(model.named_parameters())
    for name, p in named.items():
        p.copy_(_drawn(scheme, name, p, named, generator))
    if scheme.startswith("P"):
        for layer in range(layers):
            fc = named[f"blocks.{layer}.mlp.fc.weight"]
            fc.mul_(1 - SHALLOWER * layer / max(layers - 1, 1))
    if scheme in _GAINS:
        _shift_gains(named, scheme, layers, head_dim, generator)


def _drawn(
    scheme: str, name: str, p: Tensor, named: Mapping[str, Tensor], generator: torch.Generator
) -> Tensor:
    """Return one parameter's initial value."""
    if name.endswith("gains"):
        return torch.ones_like(p)
    if name == "embed.weight":
        return torch.randn(p.shape, generator=generator)
    factor = next((x for end, x in _FACTORS.items() if name.endswith(end)), 1.0)
    factored = scheme in ("H", "N", "K") and factor != 1
    projection = "proj" in name and not factored and scheme != "K"
    no_biases = scheme in ("Z", "N", "P0")
    if projection or (p.ndim < 2 and no_biases):
        return torch.zeros_like(p)
    scale = factor if factored else 1.0
    fan_in: int = named[name.removesuffix("bias") + "weight" if p.ndim < 2 else name].shape[-1]
    of_blocks = scheme == "K" and p.ndim == 2 and name != "proj.weight"
    if scheme in ("Z", "N") or of_blocks:
        normal = torch.randn(p.shape, generator=generator)
        variance = 1 / 3 if of_blocks else VARIANCE
        return normal.mul_((variance / fan_in) ** 0.5 * scale)
    uniform = torch.rand(p.shape, generator=generator) * 2 - 1
    return uniform.mul_(scale / fan_in**0.5)


def _shift_gains(
    named: Mapping[str, Tensor], scheme: str, layers: int, head_dim: int, generator: torch.Generator
) -> None:
    """Set gains of every block to 1 - a s and 1 + a s, s a random sign per channel."""
    a, before = _GAINS[scheme], torch.empty(0)
    for layer in range(layers):
        norm1, norm2 = (named[f"blocks.{layer}.norm{i}.gains"] for i in (1, 2))
        signs = torch.randint(0, 2, norm1.shape, generator=generator) * 2.0 - 1
        second = layer >= layers // 2 and (layer - layers // 2) % 2 == 1
        if scheme == "P125":
            signs = -before if second else _halved_excess(signs, head_dim, generator)
        before = signs
        norm1.copy_(1 - a * signs)
        norm2.copy_(1 + a * signs)


def _halved_excess(signs: Tensor, head_dim: int, generator: torch.Generator) -> Tensor:
    """Return the signs with the excess of one sign halved in every head's channels."""
    heads = signs.view(-1, head_dim).clone()
    for head in heads:
        excess = int(head.sum().item()) // 2  # channels to turn for no excess at all
        there = (head == (1 if excess > 0 else -1)).nonzero().flatten()
        order = torch.randperm(len(there), generator=generator)
        head[there[order[: round(abs(excess) / 2)]]] *= -1
    return heads.flatten()
