"""Rules that fit each layer's symmetry beat AdamW there."""

from collections.abc import Callable
from typing import Any

from torch import nn

from polarlight.lab.claims.claim import Area, Arm, Claim
from polarlight.lab.claims.verdict import lower
from polarlight.lab.train.recipes import TrainingRecipe
from polarlight.recipes import MlpRule, muon_with_adamw, symmetric_stack
from polarlight.routing.route import ParamGroup
from polarlight.rules import muon

_Groups = Callable[[nn.Module, float, float], list[ParamGroup]]


def _baseline(model: nn.Module, lr: float, aux_lr: float) -> list[ParamGroup]:
    return muon_with_adamw(model, lr=lr, aux_lr=aux_lr)


def _stack(model: nn.Module, lr: float, aux_lr: float) -> list[ParamGroup]:
    rates: dict[str, Any] = dict.fromkeys(("embedding_lr", "head_lr", "aux_lr"), aux_lr)
    return symmetric_stack(model, lr=lr, mlp=MlpRule.MUON, **rates)


def _arm(groups: _Groups, architecture: str) -> Arm:
    recipe = TrainingRecipe(rule=muon, lr=4e-3, about="whole model", groups=groups)
    return Arm(
        recipe=recipe, lrs=(4e-3, 8e-3), changes={"architecture": architecture, "expansion": 4.0}
    )


CLAIM = Claim(
    name="symmetric",
    says="Rules that fit the symmetry of embeddings, head and router beat AdamW on them.",
    source="the symmetry-compatible principle, arXiv 2605.18106",
    area=Area.SYMMETRY,
    dated="2026-11-25",
    arms={
        "adamw, dense": _arm(_baseline, "dense"),
        "symmetric, dense": _arm(_stack, "dense"),
        "adamw, experts": _arm(_baseline, "moe"),
        "symmetric, experts": _arm(_stack, "moe"),
    },
    checks=(
        lower("symmetric, dense", "adamw, dense"),
        lower("symmetric, experts", "adamw, experts"),
    ),
    notes="MLPs get Muon on both sides; attention gets Muon per head in the stack. One learning "
    "rate for embeddings, head and router, the same on both sides, was not swept. So a difference "
    "may come from attention's heads, or from a rate that suits one side better.",
)
