"""Tall, wide, or both."""

from dataclasses import replace

from polarlight.lab.claims.arms import AURORA, BALANCED, FINE_MUON
from polarlight.lab.claims.claim import Area, Arm, Claim
from polarlight.lab.claims.verdict import lower
from polarlight.lab.train.recipes import TrainingRecipe
from polarlight.rules import aurora
from polarlight.stages.side import Side


def _side(side: Side) -> Arm:
    recipe = TrainingRecipe(rule=lambda: aurora(BALANCED, side=side), lr=0.02, about=side.value)
    return replace(AURORA, recipe=recipe)


CLAIM = Claim(
    name="sides",
    says="Aurora belongs on tall matrices; wide ones are to be left to Muon.",
    source="Aurora, arXiv 2606.27715 and its author; track 3's record 30 says wide ones only",
    area=Area.AURORA,
    dated="2026-11-24",
    arms={
        "muon": FINE_MUON,
        "tall": AURORA,
        "wide": _side(Side.WIDE),
        "both": _side(Side.LONG_AXIS),
    },
    checks=(lower("tall", "muon"), lower("tall", "wide"), lower("tall", "both")),
)
