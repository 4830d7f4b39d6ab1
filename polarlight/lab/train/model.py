"""Small GPT; in its default form weight for weight a dense Qwen3 of Hugging Face.

    x <- x + attention(norm(x)),    x <- x + mlp(norm(x)),    logits = head(norm(x))

Norms are RMS norms before each part, queries and keys have norms of their own (before the rotary
embedding), no layer has a bias. With a mixture of experts (`mixture.py`) in place of the MLP it is
a Qwen3Moe. Parameters have Qwen3's names and shapes: a state dict loads either way, and
`qwen3_config` gives the fields of the config that fits.

Sources: Qwen Team, "Qwen3 Technical Report" (2025), arXiv 2505.09388; squared ReLU: So et al.,
"Primer" (2021), arXiv 2109.08668. Deviations: initial weights, see `GPT.initialise`.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    cross_entropy,
    relu,
    rms_norm,
    scaled_dot_product_attention,
    silu,
)

from polarlight.lab.train.mixture import Experts, Mixture, Router
from polarlight.lab.train.model_config import Architecture, Mlp, ModelConfig, qwen3_config
from polarlight.lab.train.router_load import RouterLoad, stacked

__all__ = ["GPT", "Architecture", "Mlp", "ModelConfig", "qwen3_config"]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; computed in float32, returned in x's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        weight = self.weight.float()
        return rms_norm(x.float(), weight.shape, weight, self.eps).to(x.dtype)


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary position embedding: turns the pairs (i, i + size/2) of a head by position * frequency.

    Attributes:
        cos: [positions, size], float32.
        sin: [positions, size], float32.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, positions: int, size: int, theta: float, device: torch.device) -> Self:
        """Build for positions 0 to positions - 1 and frequencies theta^(-2i/size)."""
        exponents = torch.arange(0, size, 2, dtype=torch.float32, device=device) / size
        times = torch.arange(positions, dtype=torch.float32, device=device)
        angles = (times[:, None] * (1 / theta**exponents)).repeat(1, 2)
        return cls(angles.cos(), angles.sin())

    def __call__(self, x: Tensor) -> Tensor:
        """[..., positions, size] -> [..., positions, size], in x's dtype."""
        first, second = x.float().chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return (x * self.cos + turned * self.sin).to(x.dtype)


class Attention(nn.Module):
    """Causal attention with norms on queries and keys; several query heads may share a key head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.grouped = config.key_heads != config.heads
        queries = config.heads * config.head_size
        keys = config.key_heads * config.head_size
        self.q_proj = nn.Linear(config.width, queries, bias=False)
        self.k_proj = nn.Linear(config.width, keys, bias=False)
        self.v_proj = nn.Linear(config.width, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.width, bias=False)
        self.q_norm = RMSNorm(config.head_size, config.norm_eps)
        self.k_norm = RMSNorm(config.head_size, config.norm_eps)

    def forward(self, x: Tensor, rotate: Rotation) -> Tensor:
        """[batch, positions, width] -> [batch, positions, width]."""
        q = rotate(self.q_norm(self._heads(self.q_proj(x))))
        k = rotate(self.k_norm(self._heads(self.k_proj(x))))
        v = self._heads(self.v_proj(x))
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.grouped)
        written: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(-2))
        return written

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, positions, heads * size] -> [batch, heads, positions, size]."""
        return x.view(*x.shape[:2], -1, self.head_size).transpose(1, 2)


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, width: int, neurons: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, neurons, bias=False)
        self.up_proj = nn.Linear(width, neurons, bias=False)
        self.down_proj = nn.Linear(neurons, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        written: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return written


class SquaredReLU(nn.Module):
    """down(relu(up x)^2)."""

    def __init__(self, width: int, neurons: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, neurons, bias=False)
        self.down_proj = nn.Linear(neurons, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        written: Tensor = self.down_proj(relu(self.up_proj(x)).square())
        return written


_MLPS = {Mlp.SWIGLU: SwiGLU, Mlp.RELU2: SquaredReLU}


class Block(nn.Module):
    """Attention, then an MLP or a mixture, each on a normed copy of the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = (
            Mixture(config)
            if config.is_mixture
            else _MLPS[config.mlp](config.width, config.neurons)
        )

    def forward(self, x: Tensor, rotate: Rotation) -> tuple[Tensor, RouterLoad | None]:
        """[batch, positions, width] -> the same shape, and the load of a mixture's experts."""
        x = x + self.self_attn(self.input_layernorm(x), rotate)
        inner = self.post_attention_layernorm(x)
        if isinstance(self.mlp, Mixture):
            written, load = self.mlp(inner)
            return x + written, load
        return x + self.mlp(inner), None


class Trunk(nn.Module):
    """All layers below the output layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, tokens: Tensor) -> tuple[Tensor, RouterLoad | None]:
        """[batch, positions] -> [batch, positions, width], and the loads of all mixtures."""
        size, theta = self.config.head_size, self.config.rope_theta
        rotate = Rotation.of(tokens.shape[-1], size, theta, tokens.device)
        x: Tensor = self.embed_tokens(tokens)
        loads: list[RouterLoad] = []
        for block in self.layers:
            x, load = block(x, rotate)
            loads += [] if load is None else [load]
        return self.norm(x), stacked(loads)


class GPT(nn.Module):
    """Language model; see the module docstring.

    Args:
        config: The shape.
        seed: Decides the initial weights; torch's global generator is neither read nor moved.

    Under `torch.device("meta")` no weights are drawn; call `to_empty` and `initialise` later.
    """

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):  # torch's own initial weights would move the global generator
            self.model = Trunk(config)
            self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        if device.type != "meta":
            self.to_empty(device=device)
        self.initialise(seed)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return logits, or the loss if targets are given.

        Args:
            tokens: Integers, [batch, positions].
            targets: Integers, [batch, positions]: the token after each one, shifted by the caller.

        Returns:
            Logits, [batch, positions, vocab_size]; or the cross entropy in nats, the mean over all
            positions, a float32 scalar.
        """
        if targets is not None:
            return self.loss_and_load(tokens, targets)[0]
        logits: Tensor = self.lm_head(self.model(tokens)[0])
        return logits

    def loss_and_load(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, RouterLoad | None]:
        """Return the loss of `forward`, and the load of each layer's experts.

        The load, for `load_balancing_loss`, has one row per layer; a dense model has none.
        """
        features, load = self.model(tokens)
        logits: Tensor = self.lm_head(features)
        return cross_entropy(logits.float().flatten(0, -2), targets.flatten()), load

    @torch.no_grad()
    def initialise(self, seed: int) -> Self:
        """Draw all weights; equal seeds give equal weights on every device.

        Matrices, an expert's and the router's too, are normal with standard deviation
        0.5 / sqrt(fan_in), those that write into the residual stream (o_proj, down_proj) smaller by
        sqrt(2 layers); embeddings have 0.02, norms are 1. A tied output layer is tied again, as
        `to_empty` parts it from the embeddings.
        """
        if self.config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        generator = torch.Generator(device="cpu").manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1)
            elif parameter.device.type != "meta":
                drawn = torch.randn(parameter.shape, generator=generator, device="cpu")
                parameter.copy_(drawn * self._standard_deviation(name, parameter))
        return self

    def _standard_deviation(self, name: str, parameter: Tensor) -> float:
        if name == "model.embed_tokens.weight":
            return 0.02
        writes = name.removesuffix(".weight").endswith(("o_proj", "down_proj"))
        scale: float = 0.5 * parameter.shape[-1] ** -0.5
        return scale * (2 * self.config.layers) ** -0.5 if writes else scale

    def parameter_count(self) -> int:
        """Return the number of parameters; tied ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def active_parameter_count(self) -> int:
        """Return the number of parameters in use for one token."""
        stacks = [p for m in self.modules() if isinstance(m, Experts) for p in m.parameters()]
        idle = self.config.experts - self.config.experts_per_token
        return self.parameter_count() - sum(idle * stack[0].numel() for stack in stacks)

    def router_names(self) -> list[str]:
        """Return the names of the routers' weights, one per layer of a mixture."""
        return [f"{name}.weight" for name, m in self.named_modules() if isinstance(m, Router)]
