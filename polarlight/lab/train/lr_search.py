"""Search for a learning rate with the trainer's runs, at one width or several.

    OUT/muon/lr=0.02/seed0                    one width
    OUT/muon/width256-from128/lr=0.02/seed0   several: the head's rate is that of width 128, moved

Each rate and seed is a run in a folder of its own (`loop.py`), so that a search which was stopped,
within a run or between two, goes on to the numbers of one that never was. Across widths the size of
a head is kept and their number grows; the untied output layer's AdamW rate falls as 1 / width, as
its update is aligned with what it reads; embeddings keep theirs.

Source of the two: Yang et al., "Tensor Programs V" (2022), arXiv 2203.03466, table 8.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from pathlib import Path
from statistics import mean
from typing import Any

from torch import nn

from polarlight.lab.train import history
from polarlight.lab.train.data import Corpus
from polarlight.lab.train.loop import Run, require_fitting
from polarlight.lab.train.model import GPT
from polarlight.lab.train.recipes import TrainingRecipe, recipe_of, spec_of
from polarlight.lab.train.settings import Plan
from polarlight.recipes import with_head_rate
from polarlight.routing.roles import Role
from polarlight.routing.route import ParamGroup
from polarlight.rule import UpdateRule

Watch = Callable[[Mapping[str, Any]], None]
"""Told of each record of a run."""


class SearchStoppedError(RuntimeError):
    """Error: the user stopped the search; finished runs are saved."""


def at_width(plan: Plan, width: int) -> Plan:
    """Return the plan of a wider or narrower model with heads of the same size.

    Raises:
        ValueError: If heads of that size do not fit the width.
    """
    size = plan.width // plan.heads
    heads = width // size
    if heads < 1 or width % size:
        raise ValueError(
            f"width {width} is no multiple of the size of a head, {size}: change --widths, or "
            "--set heads= or width= so that width / heads divides all of them"
        )
    kv_heads = None if plan.kv_heads is None else max(1, plan.kv_heads * heads // plan.heads)
    return replace(plan, width=width, heads=heads, kv_heads=kv_heads)


def _never() -> bool:
    return False


def _nothing(record: Mapping[str, Any]) -> None:
    """Ignore a record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LrSearch:
    """Training for `lab.tuning.find_lr`: call with a learning rate, get the final loss.

    Attributes:
        optimizer: Name of the recipe.
        plan: The model and how long it trains.
        corpus: The data.
        out: Folder of all searches.
        seeds: Runs per rate; the loss is their mean, infinite if one of them diverged.
        base_width: Width at which `numbers` hold; None if there is one width only.
        numbers: What else the runs have, such as aux_lr and weight_decay.
        stop: Whether the user wants to stop.
        watch: Told of each record.
        losses: Final losses that were found, by rate and seed; runs that diverged have none.

    Raises:
        ValueError: If seeds is below 1, or the device or its memory does not suffice.
    """

    optimizer: str
    plan: Plan
    corpus: Corpus
    out: Path
    seeds: int
    numbers: Mapping[str, float]
    base_width: int | None = None
    stop: Callable[[], bool] = _never
    watch: Watch = _nothing
    losses: dict[float, dict[int, float]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be >= 1, got {self.seeds}")
        require_fitting(self.plan, self.corpus.vocab_size)

    def __call__(self, lr: float) -> float:
        """Return the final validation loss, mean over the seeds.

        Raises:
            SearchStoppedError: If the user stopped it.
        """
        found = {seed: self._loss(lr, seed) for seed in range(self.seeds)}
        self.losses[lr] = {seed: loss for seed, loss in found.items() if isfinite(loss)}
        return mean(found.values())

    def step(self) -> float:
        """Return the operator norm of a step with lr 1 of a square hidden weight.

        RMS to RMS: a polar factor's by its scale. AdamW's entries are aligned with what a layer
        reads: in proportion to the width.
        """
        recipe, width = recipe_of(self.optimizer), self.plan.width
        groups = recipe.groups_of(self.model(), 1.0, 1.0)
        rules = [g.get("rule") for g in groups if g["role"] == Role.ATTENTION]
        rule = (rules[0] if rules else None) or recipe.rule()
        return rule.scale(width, width) if isinstance(rule, UpdateRule) else float(width)

    def model(self) -> GPT:
        """Return the untrained model."""
        return GPT(self.plan.model(self.corpus.vocab_size))

    @property
    def folder(self) -> Path:
        """Return the folder of this width's runs."""
        where = self.out / self.optimizer
        if self.base_width is None:
            return where
        return where / f"width{self.plan.width}-from{self.base_width}"

    def _loss(self, lr: float, seed: int) -> float:
        spec = spec_of(self.optimizer, seed=seed, label=f"lr={lr:.6g}", **self.numbers, lr=lr)
        folder = self.folder / spec.label / f"seed{seed}"
        run = Run(spec, self.plan, self.corpus, folder, recipe=self.recipe)
        if not run.ended:
            for record in run.records(self.stop):
                self.watch(record)
        found = history.load(folder)
        if found.stopped is not None:
            return inf
        if found.final_loss is None:
            raise SearchStoppedError
        (folder / "checkpoint.pt").unlink(missing_ok=True)  # nothing goes on from here
        return found.final_loss

    @property
    def recipe(self) -> TrainingRecipe:
        """Return the recipe, with the head's rate for this width."""
        recipe = recipe_of(self.optimizer)
        if self.base_width is None:
            return recipe
        factor = self.base_width / self.plan.width
        return replace(recipe, groups=lambda *given: _groups(recipe, factor, *given))


def _groups(
    recipe: TrainingRecipe, factor: float, model: nn.Module, lr: float, aux_lr: float
) -> list[ParamGroup]:
    return with_head_rate(recipe.groups_of(model, lr, aux_lr), factor)
