"""A random spectrum does as well as an even one; and a power beyond Muon's does better."""

from polarlight.lab.claims.arms import MUON
from polarlight.lab.claims.claim import Area, Arm, Claim
from polarlight.lab.claims.verdict import Within, lower
from polarlight.lab.train.recipes import TrainingRecipe
from polarlight.linalg import RationalPower
from polarlight.rule import UpdateRule
from polarlight.rules import freon, kaon


def _freon(b: int, a: int) -> Arm:
    """Freon with the exponent c = a/b: Muon's is 1/2."""

    def rule() -> UpdateRule:
        return freon(RationalPower(b, a))

    return Arm(recipe=TrainingRecipe(rule=rule, lr=0.02, about=f"Freon, c = {a}/{b}"))


CLAIM = Claim(
    name="kaon",
    says="Kaon, whose singular values are chaotic, matches Muon; the best power of Freon lies "
    "beyond Muon's.",
    source="Freon and Kaon, arXiv 2605.11181",
    area=Area.POLAR,
    dated="2026-11-24",
    arms={
        "muon": MUON,
        "kaon": Arm(recipe=TrainingRecipe(rule=kaon, lr=0.02, about="chaotic spectrum")),
        "freon 1/4": _freon(4, 1),
        "freon 2/3": _freon(6, 4),
    },
    checks=(
        Within("losses of Kaon and Muon agree to 0.01", {"kaon": 1.0, "muon": -1.0}, 0.01),
        lower("freon 2/3", "muon"),
        lower("freon 2/3", "freon 1/4"),
    ),
    notes="Exponents c = 1/4 and 2/3 beside Muon's 1/2; beyond it the spectrum is inverted.",
)
