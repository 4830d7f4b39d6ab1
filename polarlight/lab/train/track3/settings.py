"""Settings of the benchmark: sizes, schedules, learning rates, published losses."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from polarlight.leaderboard import Aux, Recipe, Result
from polarlight.linalg import NewtonSchulz
from polarlight.linalg.schedules import SIMPLE_QUINTIC
from polarlight.lookup import check_count
from polarlight.rule import Rule, UpdateRule
from polarlight.rules import BalancedPolar, aurora, muon
from polarlight.scheduling import Constant, Cooldown
from polarlight.stages.side import Side

HOW_TO_GET_SHARDS = (
    "the benchmark trains on FineWeb in GPT-2 tokens: clone KellerJordan/modded-nanogpt, run "
    "`python data/cached_fineweb10B.py 20` there (2 billion tokens, 4 GB; a run needs 1.7), "
    "and pass --data data/fineweb10B"
)


@dataclass(frozen=True, kw_only=True)
class Track3:
    """Settings of a run; the defaults are those of record 36, a retuned Muon.

    Attributes:
        width: Size of the residual stream.
        layers: Number of blocks.
        head_dim: Size of a head; it divides width and is a multiple of 4.
        context: Tokens per sequence.
        tokens_per_step: Tokens of one optimizer step.
        micro_batch: Sequences per forward pass.
        steps: Optimizer steps.
        horizon: Steps over which the rates fall to 0; None means `steps`. A record may stop before.
        flat: Fraction of the horizon, at the start, with constant rates; then they fall to 0.
        lr: Learning rate of the hidden matrices.
        weight_decay: Their decoupled weight decay.
        momentum: Their momentum.
        embed_lr: AdamW's for the embedding.
        head_lr: AdamW's for the head.
        vector_lr: AdamW's for biases and gains.
        aux_weight_decay: AdamW's.
        validation_tokens: The first so many tokens of the validation stream.
        validate_every: Steps between validations; every fifth of it in the horizon's last tenth.
        initial: Scheme of the initial weights; see `initial.py`.
        wide_norms: Whether norms are taken in float32 whatever the activations' dtype.
        mean_loss: Whether gradients are those of the mean of a step's losses, not of their sum.
        seed: Decides the initial weights.

    Raises:
        ValueError: If a size is not positive, sizes do not divide, or the horizon is shorter than
            the run.
    """

    width: int = 768
    layers: int = 12
    head_dim: int = 128
    context: int = 1024
    tokens_per_step: int = 524_288
    micro_batch: int = 64
    steps: int = 3250
    horizon: int | None = None
    flat: float = 0.3
    lr: float = 0.025
    weight_decay: float = 0.05
    momentum: float = 0.95
    embed_lr: float = 0.7
    head_lr: float = 0.004
    vector_lr: float = 0.015
    aux_weight_decay: float = 0.001
    validation_tokens: int = 10_485_760
    validate_every: int = 125
    initial: str = "Z"
    wide_norms: bool = False
    mean_loss: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("width", "layers", "head_dim", "context", "tokens_per_step", "micro_batch")
        for name in (*counts, "steps", "validation_tokens", "validate_every"):
            check_count(name, getattr(self, name))
        if self.width % self.head_dim or self.head_dim % 4:
            raise ValueError(
                f"head_dim must divide width and be a multiple of 4, got {self.head_dim} and "
                f"{self.width}"
            )
        tokens = self.micro_batch * self.context
        if self.tokens_per_step % tokens:
            raise ValueError(
                f"tokens_per_step must be a multiple of micro_batch * context = {tokens}, got "
                f"{self.tokens_per_step}"
            )
        if self.schedule_steps < self.steps:
            raise ValueError(f"horizon must be >= steps = {self.steps}, got {self.horizon}")

    @property
    def accumulate(self) -> int:
        """Forward passes per step."""
        return self.tokens_per_step // (self.micro_batch * self.context)

    @property
    def schedule_steps(self) -> int:
        """Steps of the schedule, whose end may lie beyond the run's."""
        return self.steps if self.horizon is None else self.horizon

    @property
    def recipe(self) -> Recipe:
        """Learning rates, decay and schedule; its hidden matrices have plain Muon."""
        fall = 1 - self.flat
        return Recipe(
            name="muon",
            lr=self.lr,
            weight_decay=self.weight_decay,
            beta=self.momentum,
            cooldown=Cooldown(self.schedule_steps, fall) if fall > 0 else Constant(),
            aux=Aux(
                embed=self.embed_lr,
                head=self.head_lr,
                vectors=self.vector_lr,
                weight_decay=self.aux_weight_decay,
            ),
        )

    def lr_factor(self, step: int) -> float:
        """Return the factor on every learning rate at a step, counted from zero."""
        return self.recipe.cooldown(step)

    def validates(self, step: int) -> bool:
        """Tell whether there is a validation after this many steps."""
        often = max(1, self.validate_every // 5)
        return (
            step % self.validate_every == 0
            or step == self.steps
            or (10 * step >= 9 * self.schedule_steps and step % often == 0)
        )


PRESETS: Mapping[str, Track3] = {
    "record-36": Track3(),
    "record-12": Track3(
        steps=3325,
        horizon=3350,
        lr=0.035,
        weight_decay=0.025,
        embed_lr=0.3,
        head_lr=1 / 320,
        vector_lr=0.01,
        aux_weight_decay=0.0,
    ),
    "full": Track3(),
    "small": Track3(
        width=128,
        layers=3,
        head_dim=64,
        context=128,
        tokens_per_step=4096,
        micro_batch=32,
        steps=200,
        validation_tokens=65_536,
        validate_every=50,
    ),
}
"""full: the sizes of the benchmark, for `--record`; record-36: the current baseline script;
record-12: the one whose losses by step are published, its rates falling over 3350 steps as in its
log; small: reduced width for a CPU, any data, which ranks nothing."""

_POLAR = NewtonSchulz(SIMPLE_QUINTIC)


def _aurora(side: Side) -> UpdateRule:
    return aurora(BalancedPolar(_POLAR), side=side)


RULES: Mapping[str, Rule] = {
    "muon": muon(polar=_POLAR),
    "aurora-tall": _aurora(Side.TALL),
    "aurora-wide": _aurora(Side.WIDE),
    "aurora-both": _aurora(Side.LONG_AXIS),
}
"""The clean ablation: Muon as published (twelve simple quintics), and Aurora with the same polar
factor on the tall matrices, the wide ones, or both; nothing else changed."""


WIDE_NORMS = {1, 2, 3, 4, 5, 7, 8, 9, 11, 13, 14, 16, 20, 24, 29, 30, 32, 34, 38, *range(40, 47)}
"""Results whose scripts take norms in float32."""

MEAN_LOSS = {33}
"""Results whose scripts average the losses of a step."""


def setting_of(found: Result, sizes: Track3) -> Track3:
    """Return the setting of a result of the leaderboard, in the sizes of another one."""
    return replace(
        sizes,
        steps=found.steps,
        horizon=max(found.horizon, found.steps),
        initial=found.initial,
        wide_norms=found.number in WIDE_NORMS,
        mean_loss=found.number in MEAN_LOSS,
    )
