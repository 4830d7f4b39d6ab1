"""Model of the benchmark, about 162 million parameters at full size.

RMS norms with gains before each part, after the embedding and before the head; biases in every
linear layer; squared ReLU; queries and keys normed without gains; rotary embedding on half of the
frequencies; attention scale 0.12; logits capped, 15 x / sqrt(x^2 + 225); nothing tied. Activations
and the embedding have `dtype`, other weights are float32 and cast where they are used.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    cross_entropy,
    linear,
    relu,
    rms_norm,
    scaled_dot_product_attention,
)

from polarlight.lab.train.track3.initial import initialise
from polarlight.lab.train.track3.settings import Track3

SCALE = 0.12
BASE = 1024.0
CAP = 15.0


class Norm(nn.Module):
    """x / rms(x) * gain over the last dimension."""

    def __init__(self, size: int, wide: bool = False) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.ones(size))
        self.wide = wide  # in float32, as about half of the results have it

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        inner = x.float() if self.wide and x.dtype != torch.float64 else x
        normed: Tensor = rms_norm(inner, (x.shape[-1],), self.gains.to(inner.dtype))
        return normed.to(x.dtype)


class Linear(nn.Linear):
    """Linear layer whose float32 weights are cast to the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        out: Tensor = linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))
        return out


def rotation(positions: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [positions, head_dim / 2]; half of the frequencies are zero."""
    live = (1 / BASE) ** torch.linspace(0, 1, head_dim // 4, device=device)
    frequencies = torch.cat([live, torch.zeros_like(live)])
    angles = torch.arange(positions, device=device, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + size/2) of [..., positions, size]."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)
    return turned.to(x.dtype)


class Track3Attention(nn.Module):
    """Causal attention."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q, self.k, self.v, self.proj = (Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[batch, positions, width] -> the same."""
        q, k, v = (self._heads(layer(x)) for layer in (self.q, self.k, self.v))
        q, k = (rotate(rms_norm(t, (self.head_dim,)), cos, sin) for t in (q, k))
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE)
        written: Tensor = self.proj(mixed.transpose(1, 2).flatten(-2))
        return written

    def _heads(self, x: Tensor) -> Tensor:
        split: Tensor = x.unflatten(-1, (-1, self.head_dim))
        return split.transpose(1, 2)


class Track3Mlp(nn.Module):
    """MLP proj(relu(fc x)^2), four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc, self.proj = Linear(width, 4 * width), Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        written: Tensor = self.proj(relu(self.fc(x)).square())
        return written


class Track3Block(nn.Module):
    """Attention, then the MLP."""

    def __init__(self, width: int, head_dim: int, wide_norms: bool = False) -> None:
        super().__init__()
        self.norm1, self.attn = Norm(width, wide_norms), Track3Attention(width, head_dim)
        self.norm2, self.mlp = Norm(width, wide_norms), Track3Mlp(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[batch, positions, width] -> the same."""
        x = x + self.attn(self.norm1(x), cos, sin)
        written: Tensor = self.mlp(self.norm2(x))
        return x + written


class Model(nn.Module):
    """The benchmark's model; weights from the seed, without torch's global generator.

    Args:
        setting: Sizes and seed.
        vocab_size: 50304 for GPT-2's tokens.
        dtype: Of activations and of the embedding.
    """

    def __init__(self, setting: Track3, vocab_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.head_dim = setting.head_dim
        with torch.device("meta"):
            self.embed = nn.Embedding(vocab_size, setting.width)
            norms = (Norm(setting.width, setting.wide_norms) for _ in range(2))
            self.norm1, self.norm2 = norms
            blocks = (
                Track3Block(setting.width, setting.head_dim, setting.wide_norms)
                for _ in range(setting.layers)
            )
            self.blocks = nn.ModuleList(blocks)
            self.proj = Linear(setting.width, vocab_size)
        self.to_empty(device="cpu")
        self.embed.to(dtype)
        sizes = {"layers": setting.layers, "head_dim": setting.head_dim}
        initialise(self, setting.initial, setting.seed, **sizes)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the cross entropies over [batch, positions], float32."""
        x = self.norm1(self.embed(tokens))
        cos, sin = rotation(tokens.shape[-1], self.head_dim, tokens.device)
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = self.proj(self.norm2(x)).float()
        capped = CAP * logits * (logits.square() + CAP**2).rsqrt()
        return cross_entropy(capped.flatten(0, -2), targets.flatten(), reduction="sum")
