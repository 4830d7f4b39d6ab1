"""Optimizers by their names on the command line, with swept learning rates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from polarlight import SpectralOptimizer
from polarlight.lab.train.settings import Spec
from polarlight.lookup import look_up
from polarlight.recipes import aurora_mlp, muon_with_adamw, symmetric_stack
from polarlight.routing.route import ParamGroup
from polarlight.rule import Rule
from polarlight.rules import (
    REGISTERED,
    AdamWRule,
    FeedbackPolar,
    RiemannianPolar,
    aurora,
    muon,
    with_adamw,
)
from polarlight.stages import RmsToRms

AUX_LR = 1e-2
"""AdamW's learning rate for embeddings, head and norms, the same beside every rule."""

SPECTRAL_LR = 4e-3
"""Of rules whose updates are as large as AdamW's, 0.2 lr per entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecipe:
    """Rule for the hidden matrices with its default learning rates.

    Attributes:
        rule: Makes the rule.
        lr: Learning rate of the hidden matrices to start from; where `docs/log.md` has a sweep, its
            best.
        about: One line for `--help`.
        momentum: Decay of the first moment.
        groups: Routes a model with (model, lr, aux_lr); None gives hidden matrices the rule and
            AdamW to the rest. The rule then only stands where a group names none.
    """

    rule: Callable[[], Rule]
    lr: float
    about: str
    momentum: float = 0.95
    groups: Callable[[nn.Module, float, float], list[ParamGroup]] | None = None

    def groups_of(self, model: nn.Module, lr: float, aux_lr: float) -> list[ParamGroup]:
        """Return the model's param groups."""
        route = self.groups or (lambda model, lr, aux_lr: with_adamw(model, lr=aux_lr))
        return route(model, lr, aux_lr)


RECIPES: Mapping[str, TrainingRecipe] = {
    "adamw": TrainingRecipe(
        rule=AdamWRule, lr=1e-3, momentum=0.9, about="AdamW on every parameter"
    ),
    "aurora-paper": TrainingRecipe(
        rule=lambda: aurora(FeedbackPolar()), lr=0.02, about="Aurora by the paper's algorithm 3"
    ),
    "aurora-riemannian": TrainingRecipe(
        rule=lambda: aurora(RiemannianPolar()), lr=0.02, about="Aurora by Riemannian ascent"
    ),
    "muon-rms": TrainingRecipe(
        rule=muon,
        lr=SPECTRAL_LR,
        about="Muon with AdamW, updates as large as AdamW's",
        groups=lambda model, lr, aux_lr: muon_with_adamw(model, lr=lr, aux_lr=aux_lr),
    ),
    "muon-rms-to-rms": TrainingRecipe(
        rule=lambda: muon(scale=RmsToRms()),
        lr=0.04,
        about="Muon in the scale whose learning rate is the same at every width",
    ),
    "aurora-mlp": TrainingRecipe(
        rule=muon,
        lr=SPECTRAL_LR,
        about="the same with Aurora on gate and up projections",
        groups=lambda model, lr, aux_lr: aurora_mlp(model, lr=lr, aux_lr=aux_lr),
    ),
    "symmetric": TrainingRecipe(
        rule=muon,
        lr=SPECTRAL_LR,
        about="a rule for every kind of layer, by its symmetries",
        groups=lambda model, lr, aux_lr: symmetric_stack(
            model, lr=lr, embedding_lr=aux_lr, head_lr=aux_lr, aux_lr=aux_lr
        ),
    ),
}
"""Recipes that are more than a registered rule with its defaults."""


def recipes() -> dict[str, TrainingRecipe]:
    """Return every recipe by name: registered rules, plugins' rules, and combinations."""
    plain = {
        name: TrainingRecipe(
            rule=entry.make, lr=entry.lr, about=entry.about, momentum=entry.momentum
        )
        for name, entry in REGISTERED.items()
    }
    return plain | dict(RECIPES)


def recipe_of(name: str) -> TrainingRecipe:
    """Look up a recipe by name.

    Raises:
        ValueError: If there is none; the message lists the known ones and the nearest.
    """
    return look_up(name, recipes(), "optimizer")


def spec_of(name: str, *, seed: int, label: str | None = None, **numbers: float) -> Spec:
    """Return a run of the recipe with its own numbers, or the given ones."""
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


def build(model: nn.Module, spec: Spec, recipe: TrainingRecipe | None = None) -> SpectralOptimizer:
    """Build the optimizer of a run from `recipe`, or from the recipe the run names."""
    recipe = recipe or recipe_of(spec.optimizer)
    return SpectralOptimizer(
        recipe.groups_of(model, spec.lr, spec.aux_lr),
        lr=spec.lr,
        weight_decay=spec.weight_decay,
        momentum=spec.momentum,
        rule=recipe.rule(),
    )
