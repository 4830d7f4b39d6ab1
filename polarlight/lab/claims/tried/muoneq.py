"""Even rows before the polar factor help, and Aurora has them already."""

from dataclasses import replace as replaced

from polarlight.lab.claims.arms import BALANCED, MUON_RMS, MUONEQ
from polarlight.lab.claims.claim import Area, Arm, Claim
from polarlight.lab.claims.verdict import Within, lower
from polarlight.lab.train.recipes import TrainingRecipe
from polarlight.rule import UpdateRule
from polarlight.rules import aurora
from polarlight.stages import EquilibrateRows, MatchRmsAdamW


def _aurora(*, rows_first: bool) -> UpdateRule:
    rule = aurora(BALANCED, scale=MatchRmsAdamW())
    return replaced(rule, balance=EquilibrateRows()) if rows_first else rule


def _arm(*, rows_first: bool) -> Arm:
    recipe = TrainingRecipe(rule=lambda: _aurora(rows_first=rows_first), lr=4e-3, about="Aurora")
    return Arm(recipe=recipe, lrs=MUONEQ.lrs)


CLAIM = Claim(
    name="muoneq",
    says="MuonEq-R beats Muon; on top of Aurora it changes nothing.",
    source="MuonEq, arXiv 2603.28254; the redundancy by the mathematics of Aurora's first round",
    area=Area.ROWS,
    dated="2026-11-24",
    effect="Published: 2.554 against 2.570 (Muon), 1 billion parameters.",
    arms={
        "muon": MUON_RMS,
        "muoneq": MUONEQ,
        "aurora": _arm(rows_first=False),
        "aurora, rows first": _arm(rows_first=True),
    },
    checks=(
        lower("muoneq", "muon", published=0.016),
        Within(
            "Aurora with and without even rows first agree to 0.01",
            {"aurora": 1.0, "aurora, rows first": -1.0},
            0.01,
        ),
    ),
    notes="All arms scale updates to AdamW's size. On tall matrices rows first changes nothing at "
    "all; on square ones it does.",
)
