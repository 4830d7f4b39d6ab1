"""Plan of the speedup runs: methods, sizes, lengths, tuning and thresholds.

Every method has the same tuning budget at one Chinchilla budget (20 tokens per parameter), on a
seed that is used for nothing else:

1. learning rate x weight decay, 4 x 3 runs; up to 6 more where the best is at an end;
2. AdamW's rate for embeddings, head and norms, 2 runs; up to 2 more at an end;
3. the learning rate again, half and twice of it, 2 runs; up to 2 more at an end;
4. at 4 budgets: the best learning rate, half and twice of it, 3 runs; the best of them is used from
   there on.

The first 18 tuning runs of AdamW (0.03M) ended at the end of what was allowed then, 2 rates beyond
the grid and no step 3; both were widened for all methods before any run of the comparison.

Then every length is trained with seeds 0, 1, ... AdamW is trained at more lengths than the others,
so that their losses lie between its own.

Thresholds, written on 2026-11-30 before the first run (`CHECKS`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from polarlight.lab.claims.arms import (
    ADAMW,
    AURORA,
    FINE,
    MUON,
    MUONEQ,
    NORMUON,
    UNORMUON,
)
from polarlight.lab.claims.claim import SMALL, Arm
from polarlight.lab.claims.cost import core_seconds, hidden_parameters
from polarlight.lab.train.recipes import TrainingRecipe, recipe_of
from polarlight.lab.train.settings import Plan
from polarlight.lookup import look_up
from polarlight.rules import WarmPolar, aurora, polargrad, soap

DATED = "2026-11-30"

CHECKS = (
    "Each method: steps of tuned AdamW to reach the same loss, over its own steps, above 1: the "
    "95 % interval leaves out 1.",
    "The speedup falls with length: that at the longest length is below that at one budget, the "
    "95 % interval of their ratio leaves out 1. Published for well-tuned AdamW: 1.4 falls to 1.1.",
    "Aurora, warm and release, against Muon at each length: paired difference of losses per seed.",
)

TUNING_SEED = 1000
TOKENS_PER_PARAMETER = 20
"""Of one Chinchilla budget; Hoffmann et al. (2022), arXiv 2203.15556."""

RATES = (0.25, 0.5, 1.0, 2.0)
"""Learning rates of the grid, in units of the method's own."""

DECAYS = (0.0, 5e-4, 2e-3)
"""Weight decay times the method's own learning rate, per step; decay is decoupled."""

AUX_RATES = (0.005, 0.01, 0.02)
"""AdamW's rates for embeddings, head and norms; the middle one is that of the grid."""

CHECK_LENGTH = 4
"""Budgets at which the learning rate is checked, and from which on the better one is used."""

METHODS: Mapping[str, Arm] = {
    "adamw": ADAMW,
    "muon": MUON,
    "aurora": Arm(
        recipe=TrainingRecipe(rule=lambda: aurora(WarmPolar(FINE)), lr=0.02, about="Aurora, warm")
    ),
    "aurora-release": AURORA,
    "normuon": NORMUON,
    "unormuon": UNORMUON,
    "muoneq": MUONEQ,
    "soap": Arm(recipe=TrainingRecipe(rule=soap, lr=2e-3, about="SOAP")),
    "polargrad": Arm(
        recipe=TrainingRecipe(rule=lambda: polargrad(polar=FINE), lr=0.02, about="PolarGrad")
    ),
    "symmetric": Arm(recipe=recipe_of("symmetric")),
}
"""By name, in the order in which they are run; AdamW first, which the others are held against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPart:
    """Runs at one model size and batch.

    Attributes:
        name: For the command line and the files of records.
        model: The plan, without a length.
        lengths: Training lengths in Chinchilla budgets, ascending, of every method.
        adamw_lengths: Those of AdamW.
        seeds: Runs per method and length.
        methods: Names of the methods.
        rates: See `RATES`.
        decays: See `DECAYS`.
    """

    name: str
    model: Plan
    lengths: tuple[float, ...]
    adamw_lengths: tuple[float, ...]
    seeds: int = 4
    methods: tuple[str, ...] = tuple(METHODS)
    rates: tuple[float, ...] = RATES
    decays: tuple[float, ...] = DECAYS

    def lengths_of(self, method: str) -> tuple[float, ...]:
        """Return the lengths of a method."""
        return self.adamw_lengths if method == "adamw" else self.lengths

    def plan(self, length: float) -> Plan:
        """Return the plan of a run of this many Chinchilla budgets."""
        tokens = length * TOKENS_PER_PARAMETER * hidden_parameters(self.model)
        steps = max(2, round(tokens / self.model.tokens_per_step))
        return replace(
            self.model,
            steps=steps,
            warmup=max(1, steps // 20),
            validate_every=steps,
            neurons_every=steps,
        )

    def runs(self, method: str) -> dict[float, int]:
        """Return the number of runs by length, without extensions of the tuning."""
        first = self.lengths[0]
        counts = dict.fromkeys(self.lengths_of(method), self.seeds)
        counts[first] = counts.get(first, 0) + len(self.rates) * len(self.decays) + 4
        if CHECK_LENGTH in counts:
            counts[CHECK_LENGTH] += 3
        return counts

    def core_seconds(self, method: str) -> float:
        """Return the estimated processor time of a method's runs on the core of `cost`."""
        return sum(n * core_seconds(self.plan(x)) for x, n in self.runs(method).items())

    def operations(self, method: str) -> float:
        """Return the operations of a method's runs, 6 per parameter and token."""
        parameters = hidden_parameters(self.model)
        per_budget = 6 * parameters * TOKENS_PER_PARAMETER * parameters
        return sum(n * x * per_budget for x, n in self.runs(method).items())


_RUN = replace(SMALL, batch=64, validation_tokens=131_072, log_every=100, checkpoint_every=500)
AXIS_METHODS = ("adamw", "muon", "aurora")
AXIS_WIDTHS: Mapping[int, str] = {32: "0.03M", 64: "0.13M"}
"""Widths at which batch and MLP are varied, with the part of the plan that lies in the middle."""


def axis_part(axis: str, width: int, value: int) -> GridPart:
    """Return a part at another batch ("batch", thousands of tokens) or MLP ("mlp", its factor)."""
    changes = {"batch": 16 * value} if axis == "batch" else {"expansion": float(value)}
    return GridPart(
        name=f"{AXIS_WIDTHS[width]}-{axis}-{value}{'k' if axis == 'batch' else 'x'}",
        model=replace(_RUN, width=width, **changes),
        lengths=(1,),
        adamw_lengths=(0.5, 1, 2),
        methods=AXIS_METHODS,
    )


_GPU = replace(
    _RUN,
    width=512,
    layers=8,
    heads=8,
    context=512,
    batch=128,
    validation_tokens=2_097_152,
    precision="auto",
    compile=True,
    checkpoint_every=500,
)

SIZES: Mapping[str, tuple[GridPart, ...]] = {
    "tiny": (
        GridPart(
            name="tiny",
            model=replace(
                _RUN, width=8, layers=1, heads=2, context=16, batch=256, validation_tokens=256
            ),
            lengths=(1, 4),
            adamw_lengths=(1, 2, 4, 8),
            seeds=2,
            methods=("adamw", "muon"),
            rates=(0.5, 1.0),
            decays=(0.0, 2e-3),
        ),
    ),
    "small": (
        *(
            GridPart(
                name=name,
                model=replace(_RUN, width=width),
                lengths=(1, 4, 8),
                adamw_lengths=(0.25, 0.5, 1, 2, 4, 8, 16),
            )
            for name, width in (("0.03M", 32), ("0.13M", 64))
        ),
        GridPart(
            name="0.52M",
            model=replace(_RUN, width=128),
            lengths=(1, 4),
            adamw_lengths=(0.5, 1, 2, 4, 8),
        ),
        *(axis_part("batch", width, tokens) for width in AXIS_WIDTHS for tokens in (1, 16)),
        *(axis_part("mlp", width, factor) for width in AXIS_WIDTHS for factor in (1, 2, 8, 16)),
    ),
    "gpu": (
        GridPart(
            name="34M",
            model=_GPU,
            lengths=(1, 4),
            adamw_lengths=(0.5, 1, 2, 4, 8),
            seeds=3,
            methods=("adamw", "muon", "aurora", "normuon"),
        ),
    ),
}  # fmt: skip
"""tiny: seconds, for tests. small: the real one, on a CPU. gpu: 34 million parameters."""


def parts_of(size: str, names: tuple[str, ...] = ()) -> tuple[GridPart, ...]:
    """Return the parts of a size, all of them or the named ones.

    Raises:
        ValueError: If there is no such size or part; the message lists the known ones.
    """
    parts = {part.name: part for part in look_up(size, SIZES, "size")}
    return tuple(look_up(name, parts, "part") for name in names) or tuple(parts.values())


def method_of(name: str) -> Arm:
    """Return the arm of a method.

    Raises:
        ValueError: If there is none of this name; the message lists the known ones.
    """
    return look_up(name, METHODS, "method")
