"""Starvation under SOAP, Shampoo and Muon."""

from dataclasses import replace

from polarlight.lab.claims.arms import MUON
from polarlight.lab.claims.claim import Area, Arm, Claim
from polarlight.lab.claims.verdict import lower
from polarlight.lab.train.recipes import TrainingRecipe
from polarlight.rules import shampoo, soap

_LONG = {"steps": 500, "validate_every": 500}

CLAIM = Claim(
    name="shampoo",
    says="Eigenvalue-corrected Shampoo (SOAP) starves fewer neurons than Shampoo, and Shampoo "
    "fewer than Muon.",
    source="ours; Shampoo without memory is Muon",
    area=Area.STARVATION,
    dated="2026-11-24",
    arms={
        "muon": replace(MUON, changes=_LONG),
        "shampoo": Arm(
            recipe=TrainingRecipe(rule=shampoo, lr=0.02, about="Shampoo"), changes=_LONG
        ),
        "soap": Arm(
            recipe=TrainingRecipe(rule=soap, lr=2e-3, about="SOAP"),
            lrs=(1e-3, 2e-3, 4e-3),
            changes=_LONG,
        ),
    },
    checks=(
        lower("soap", "shampoo", measure="starved"),
        lower("shampoo", "muon", measure="starved"),
    ),
)
