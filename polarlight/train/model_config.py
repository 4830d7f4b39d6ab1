"""The shape of the trainer's model, and the Hugging Face config that fits it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Mlp(StrEnum):
    """What a block does to each position by itself."""

    SWIGLU = "swiglu"
    RELU2 = "relu2"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a `GPT`.

    Attributes:
        vocab_size: Number of tokens.
        width: Size of the residual stream.
        layers: Number of blocks.
        heads: Query heads; they divide width unless head_dim is given.
        kv_heads: Key and value heads, a divisor of heads; None takes heads.
        head_dim: Size of a head, even; None takes width / heads.
        mlp: SwiGLU, with three matrices, or squared ReLU, with two.
        expansion: Neurons of an MLP per unit of width; see `neurons`.
        context: Tokens that the model is meant for; for reports, no weight depends on it.
        rope_theta: Base of the rotary embedding's wavelengths.
        tied: Whether the output layer is the embedding table.
        norm_eps: Added to mean squares, absolute.

    Raises:
        ValueError: If a value is outside its range, or sizes do not divide.
    """

    vocab_size: int
    width: int = 192
    layers: int = 3
    heads: int = 6
    kv_heads: int | None = None
    head_dim: int | None = None
    mlp: Mlp = Mlp.SWIGLU
    expansion: float = 4.0
    context: int = 128
    rope_theta: float = 10000.0
    tied: bool = False
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        self._check_ranges()
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads, got {self.width} and {self.heads}; "
                "or give head_dim"
            )
        if self.head_size % 2:
            raise ValueError(
                f"head_dim must be even (it is rotated in pairs), got {self.head_size}"
            )
        if self.heads % self.key_heads:
            raise ValueError(f"kv_heads must divide heads = {self.heads}, got {self.key_heads}")

    def _check_ranges(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        for name in ("expansion", "rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.mlp not in list(Mlp):
            raise ValueError(f"mlp must be one of {', '.join(Mlp)}, got {self.mlp}")

    @property
    def head_size(self) -> int:
        """Size of a head."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def key_heads(self) -> int:
        """Number of key and value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def neurons(self) -> int:
        """Neurons of one MLP: expansion * width, rounded to a multiple of 8, at least 8."""
        return 8 * max(1, round(self.expansion * self.width / 8))


def qwen3_config(config: ModelConfig) -> dict[str, Any]:
    """The fields of the transformers `Qwen3Config` whose model has the same weights and logits.

    Raises:
        ValueError: If the MLP is not SwiGLU; Qwen3 has no other.
    """
    if config.mlp != Mlp.SWIGLU:
        raise ValueError(f"a Qwen3 has mlp = {Mlp.SWIGLU}, got {config.mlp}")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.neurons,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "tie_word_embeddings": config.tied,
    }
