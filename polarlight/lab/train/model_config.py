"""Shape of the trainer's model, and the corresponding Hugging Face config."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Architecture(StrEnum):
    """Kind of a block's second half: one MLP, or a mixture of experts."""

    DENSE = "dense"
    MOE = "moe"


class Mlp(StrEnum):
    """Nonlinearity of an MLP."""

    SWIGLU = "swiglu"
    RELU2 = "relu2"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a `GPT`.

    Attributes:
        vocab_size: Number of tokens.
        width: Size of the residual stream.
        layers: Number of blocks.
        heads: Query heads; they divide width unless head_dim is given.
        kv_heads: Key and value heads, a divisor of heads; None takes heads.
        head_dim: Size of a head, even; None takes width / heads.
        architecture: Dense, or a mixture of experts in every block.
        mlp: SwiGLU, with three matrices, or squared ReLU, with two; experts are SwiGLU.
        expansion: Neurons of a dense MLP per unit of width; see `neurons`.
        experts: Experts of a mixture, at least 2.
        experts_per_token: How many of them the router picks for a token.
        expert_expansion: Neurons of one expert per unit of width; see `expert_neurons`. By default
            two experts have as many neurons as one dense MLP.
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
    architecture: Architecture = Architecture.DENSE
    mlp: Mlp = Mlp.SWIGLU
    expansion: float = 4.0
    experts: int = 8
    experts_per_token: int = 2
    expert_expansion: float = 2.0
    context: int = 128
    rope_theta: float = 10000.0
    tied: bool = False
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_heads()
        self._check_mixture()

    def _check_ranges(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        for name in ("expansion", "expert_expansion", "rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        for name, kind in (("architecture", Architecture), ("mlp", Mlp)):
            if getattr(self, name) not in list(kind):
                known = ", ".join(kind)
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)}")

    def _check_heads(self) -> None:
        if self.head_dim is None and self.width % (2 * self.heads):
            raise ValueError(
                f"width must be a multiple of 2 * heads = {2 * self.heads} (a head is rotated in "
                f"pairs), got {self.width}; choose {self._legal_heads()}"
            )
        if self.head_size % 2:
            raise ValueError(
                f"head_dim must be even (it is rotated in pairs), got {self.head_size}"
            )
        if self.heads % self.key_heads:
            raise ValueError(f"kv_heads must divide heads = {self.heads}, got {self.key_heads}")

    def _legal_heads(self) -> str:
        """Return the nearest widths for these heads, and head counts for this width."""
        unit, keys = 2 * self.heads, self.kv_heads or 1
        below = self.width // unit * unit
        widths = [f"width = {width}" for width in (below, below + unit) if width]
        most = min(self.width // 2, 4 * self.heads, 1024)
        fitting = [n for n in range(1, most + 1) if self.width % (2 * n) == 0 and n % keys == 0]
        near = sorted(sorted(fitting, key=lambda n: abs(n - self.heads))[:2])
        return " or ".join([*widths, *(f"heads = {n}" for n in near)])

    def _check_mixture(self) -> None:
        if self.experts < 2:
            raise ValueError(
                f"experts must be >= 2, got {self.experts}; "
                f"for a single MLP choose architecture = {Architecture.DENSE}"
            )
        if not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(
                f"experts_per_token must lie between 1 and experts = {self.experts}, "
                f"got {self.experts_per_token}"
            )
        if self.is_mixture and self.mlp != Mlp.SWIGLU:
            raise ValueError(
                f"experts have mlp = {Mlp.SWIGLU}, got {self.mlp}; "
                f"choose it, or architecture = {Architecture.DENSE}"
            )

    @property
    def is_mixture(self) -> bool:
        """True if every block has a mixture of experts in place of one MLP."""
        return self.architecture == Architecture.MOE

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
        """Neurons of one dense MLP: expansion * width, rounded to a multiple of 8, at least 8."""
        return _multiple_of_eight(self.expansion * self.width)

    @property
    def expert_neurons(self) -> int:
        """Neurons of one expert: expert_expansion * width, rounded in the same way."""
        return _multiple_of_eight(self.expert_expansion * self.width)

    @property
    def active_neurons(self) -> int:
        """Neurons of a layer in use for one token."""
        return self.experts_per_token * self.expert_neurons if self.is_mixture else self.neurons

    @property
    def parameter_count(self) -> int:
        """Number of parameters, without building the model; tied ones count once."""
        attention = 2 * self.width * (self.heads + self.key_heads) * self.head_size
        norms = 2 * (self.width + self.head_size)
        matrices = 3 if self.mlp == Mlp.SWIGLU else 2
        mlp = matrices * self.width * self.neurons
        if self.is_mixture:
            mlp = self.experts * self.width * (3 * self.expert_neurons + 1)
        tables = (1 if self.tied else 2) * self.vocab_size * self.width
        return self.layers * (attention + norms + mlp) + tables + self.width


def _multiple_of_eight(size: float) -> int:
    return 8 * max(1, round(size / 8))


def qwen3_config(config: ModelConfig) -> dict[str, Any]:
    """Return the transformers config whose model has the same weights and logits.

    Returns:
        Fields of a `Qwen3Config` for a dense model, of a `Qwen3MoeConfig` for a mixture.

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
        **(_mixture_fields(config) if config.is_mixture else {}),
    }


def _mixture_fields(config: ModelConfig) -> dict[str, Any]:
    return {
        "moe_intermediate_size": config.expert_neurons,
        "num_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "norm_topk_prob": config.experts_per_token > 1,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
