"""Settings of training: the numbers behind presets, options and checkpoints."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from polarlight.lab.train.model_config import Architecture, Mlp, ModelConfig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings that all runs of a comparison share.

    Attributes:
        width: Size of the residual stream; see `ModelConfig` for this and the next eleven.
        layers: Number of blocks.
        heads: Query heads.
        kv_heads: Key and value heads; None takes heads.
        architecture: Dense, or a mixture of experts.
        mlp: SwiGLU or squared ReLU.
        expansion: Neurons of a dense MLP per unit of width.
        experts: Experts per layer of a mixture.
        experts_per_token: How many of them a token is sent to.
        expert_expansion: Neurons of one expert per unit of width.
        tied: Whether the output layer is the embedding table.
        context: Tokens per sequence.
        load_balancing: Factor of a mixture's load-balancing loss, which is added to what is
            differentiated and to no loss that is reported; Switch Transformers' 0.01 by default.
        batch: Sequences per micro batch.
        accumulate: Micro batches per step.
        steps: Optimizer steps.
        warmup: Steps over which the learning rate rises linearly from zero.
        cooldown: Fraction of the steps, at the end, over which it falls linearly to zero.
        validate_every: Steps between validations; the last step is always validated.
        validation_tokens: Tokens per validation, at most.
        log_every: Steps between records of the training loss.
        neurons_every: Steps between samples of the neurons.
        checkpoint_every: Steps between checkpoints.
        precision: auto, bf16 or fp32: the dtype of products under autocast.
        compile: Whether the model goes through `torch.compile`.
        device: auto, or a torch device.

    Raises:
        ValueError: If a value is outside its range.
    """

    width: int = 192
    layers: int = 3
    heads: int = 6
    kv_heads: int | None = None
    architecture: Architecture = Architecture.DENSE
    mlp: Mlp = Mlp.SWIGLU
    expansion: float = 4.0
    experts: int = 8
    experts_per_token: int = 2
    expert_expansion: float = 2.0
    tied: bool = False
    context: int = 128
    load_balancing: float = 0.01
    batch: int = 16
    accumulate: int = 1
    steps: int = 300
    warmup: int = 20
    cooldown: float = 0.4
    validate_every: int = 50
    validation_tokens: int = 65_536
    log_every: int = 5
    neurons_every: int = 25
    checkpoint_every: int = 100
    precision: str = "auto"
    compile: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be >= 0, got {self.warmup}")
        if not 0 <= self.cooldown <= 1:
            raise ValueError(f"cooldown must lie in [0, 1], got {self.cooldown}")
        if not 0 <= self.load_balancing < math.inf:
            raise ValueError(f"load_balancing must be finite and >= 0, got {self.load_balancing}")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ValueError(f"precision must be auto, bf16 or fp32, got {self.precision}")
        self.model(vocab_size=1)

    def model(self, vocab_size: int) -> ModelConfig:
        """Return the model's shape for a vocabulary."""
        return ModelConfig(
            vocab_size=vocab_size,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            architecture=self.architecture,
            mlp=self.mlp,
            expansion=self.expansion,
            experts=self.experts,
            experts_per_token=self.experts_per_token,
            expert_expansion=self.expert_expansion,
            tied=self.tied,
            context=self.context,
        )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch * self.accumulate * self.context

    def lr_factor(self, step: int) -> float:
        """Return the factor on every learning rate at a step, counted from zero."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        falling = self.cooldown * self.steps
        fall = min(1.0, (self.steps - step) / falling) if falling else 1.0
        return rise * fall


_COUNTS = (
    "context",
    "batch",
    "accumulate",
    "steps",
    "validate_every",
    "validation_tokens",
    "log_every",
    "neurons_every",
    "checkpoint_every",
)

PRESETS: Mapping[str, Plan] = {
    "quick": Plan(),
    "demo": Plan(
        width=128,
        layers=2,
        heads=4,
        batch=8,
        steps=200,
        validation_tokens=32_768,
        neurons_every=50,
    ),
    "small": Plan(
        width=384,
        layers=6,
        heads=6,
        context=256,
        batch=32,
        steps=2000,
        warmup=100,
        validate_every=200,
        validation_tokens=262_144,
        log_every=10,
        neurons_every=100,
    ),
    "gpu": Plan(
        width=768,
        layers=12,
        heads=12,
        context=1024,
        batch=64,
        steps=3000,
        warmup=150,
        validate_every=250,
        validation_tokens=2_097_152,
        log_every=10,
        neurons_every=100,
        checkpoint_every=500,
        compile=True,
    ),
}
"""quick: minutes on two CPU cores; demo: three seeds of four optimizers in a few minutes; small:
hours on a CPU; gpu: GPT-2 small's size on one GPU.

All are dense; each is a mixture of experts with `architecture="moe"`, with as many neurons per
token and four times as many in all.
"""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Settings of one run of a comparison.

    Attributes:
        label: What the report calls it; equal for all seeds.
        optimizer: Name of the recipe.
        seed: Decides initial weights and data order.
        lr: Learning rate of the hidden matrices.
        aux_lr: AdamW's learning rate for everything else.
        momentum: Decay of the first moment.
        weight_decay: Decoupled weight decay of the hidden matrices.
    """

    label: str
    optimizer: str
    seed: int
    lr: float
    aux_lr: float
    momentum: float
    weight_decay: float


def with_changes(plan: Plan, changes: Mapping[str, Any]) -> Plan:
    """Return the plan with every change that is not None."""
    return replace(plan, **{key: value for key, value in changes.items() if value is not None})


def as_record(plan: Plan, spec: Spec, fingerprint: str) -> dict[str, Any]:
    """Return all settings that affect a run's numbers, as JSON types."""
    return {"plan": asdict(plan), "run": asdict(spec), "data": fingerprint}
