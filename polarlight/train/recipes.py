"""Optimizers by the names that the command line knows, with learning rates that were swept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

from torch import nn

from polarlight import (
    AdamWRule,
    FeedbackPolar,
    RiemannianPolar,
    SpectralOptimizer,
    aurora,
    muon,
    muoneq,
    normuon,
    unormuon,
    with_adamw,
)
from polarlight.rule import Rule
from polarlight.train.settings import Spec

AUX_LR = 1e-2
"""AdamW's learning rate for embeddings, head and norms, the same beside every rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A rule for the hidden matrices and the numbers it is used with here.

    Attributes:
        rule: Makes the rule.
        lr: Learning rate of the hidden matrices, best of the sweeps in `docs/log.md`.
        about: One line for `--help`.
        momentum: Decay of the first moment.
    """

    rule: Callable[[], Rule]
    lr: float
    about: str
    momentum: float = 0.95


RECIPES: Mapping[str, Recipe] = {
    "adamw": Recipe(rule=AdamWRule, lr=1e-3, momentum=0.9, about="AdamW on every parameter"),
    "muon": Recipe(rule=muon, lr=0.02, about="polar factor of the momentum"),
    "normuon": Recipe(rule=normuon, lr=0.02, about="Muon with rows evened out over time"),
    "unormuon": Recipe(rule=unormuon, lr=0.02, about="NorMuon on tall matrices only"),
    "muoneq": Recipe(rule=muoneq, lr=4e-3, about="rows made equal before the polar factor"),
    "aurora": Recipe(rule=aurora, lr=0.02, about="polar factor with equal rows"),
    "aurora-paper": Recipe(
        rule=lambda: aurora(FeedbackPolar()), lr=0.02, about="Aurora by the paper's algorithm 3"
    ),
    "aurora-riemannian": Recipe(
        rule=lambda: aurora(RiemannianPolar()), lr=0.02, about="Aurora by Riemannian ascent"
    ),
}


def recipe_of(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        ValueError: If there is none; the message lists the known ones and the nearest.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = get_close_matches(name, RECIPES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"unknown optimizer {name!r}.{hint} Known: {', '.join(RECIPES)}")


def spec_of(name: str, *, seed: int, label: str | None = None, **numbers: float) -> Spec:
    """A run of the recipe with its own numbers, or the given ones (lr, aux_lr, momentum, ...)."""
    recipe = recipe_of(name)
    spec = Spec(
        label=label or name,
        optimizer=name,
        seed=seed,
        lr=recipe.lr,
        aux_lr=AUX_LR,
        momentum=recipe.momentum,
        weight_decay=0.0,
    )
    return replace(spec, **numbers)  # type: ignore[arg-type]


def build(model: nn.Module, spec: Spec) -> SpectralOptimizer:
    """The optimizer of a run."""
    return SpectralOptimizer(
        with_adamw(model, lr=spec.aux_lr),
        lr=spec.lr,
        weight_decay=spec.weight_decay,
        momentum=spec.momentum,
        rule=recipe_of(spec.optimizer).rule(),
    )
