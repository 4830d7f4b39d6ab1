"""NorMuon's gain is that of even rows."""

from polarlight.lab.claims.arms import MUON, NORMUON, PUBLISHED
from polarlight.lab.claims.claim import Area, Arm, Claim
from polarlight.lab.claims.verdict import Within, lower
from polarlight.lab.train.recipes import TrainingRecipe
from polarlight.rules import unormuon

CLAIM = Claim(
    name="normuon-rows",
    says="NorMuon's gain over Muon is that of even rows: U-NorMuon without memory (beta2 = 0) has "
    "all of it.",
    source="Tilde Research, Aurora blog (2026)",
    area=Area.ROWS,
    dated="2026-11-24",
    effect="Published: 2.281 against 2.291 (Muon), 1.38 billion parameters, in arXiv 2609.39114.",
    arms={
        "muon": MUON,
        "normuon": NORMUON,
        "even rows": Arm(
            recipe=TrainingRecipe(
                rule=lambda: unormuon(beta2=0.0, polar=PUBLISHED), lr=0.02, about="rows made even"
            )
        ),
    },
    checks=(
        lower("normuon", "muon", published=0.010),
        lower("even rows", "muon"),
        Within(
            "losses of NorMuon and of even rows agree to 0.01",
            {"normuon": 1.0, "even rows": -1.0},
            0.01,
        ),
    ),
)
