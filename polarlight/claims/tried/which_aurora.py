"""Release, paper, warm, exact: which Aurora trains best, and does better alignment train better?"""

from collections.abc import Callable

from polarlight import FeedbackPolar, RiemannianPolar, WarmPolar, aurora
from polarlight.claims.arms import BALANCED, FINE
from polarlight.claims.claim import Arm, Claim
from polarlight.claims.verdict import lower
from polarlight.rule import UpdateRule
from polarlight.train.recipes import Recipe


def _arm(rule: Callable[[], UpdateRule], about: str) -> Arm:
    return Arm(recipe=Recipe(rule=rule, lr=0.02, about=about))


CLAIM = Claim(
    name="which-aurora",
    says="The row scale that is kept between steps (warm) trains better than the release's fresh "
    "rounds, the paper's feedback and Riemannian ascent; the better aligned solver trains better.",
    source="a first trial of ours for the warm scale; the Aurora blog for alignment",
    arms={
        "release": _arm(lambda: aurora(BALANCED), "two fresh rounds"),
        "paper": _arm(lambda: aurora(FeedbackPolar(FINE)), "feedback"),
        "warm": _arm(lambda: aurora(WarmPolar(FINE)), "row scale kept"),
        "riemannian": _arm(lambda: aurora(RiemannianPolar()), "ascent"),
    },
    checks=(
        lower("warm", "release"),
        lower("warm", "paper"),
        lower("warm", "riemannian"),
        lower("riemannian", "release", "Riemannian ascent, better aligned, has the lower loss"),
    ),
    reported=dict.fromkeys(("release", "paper", "warm", "riemannian"), ("alignment", "starved")),
    notes="Riemannian ascent aligns better by construction. The exact solver is no arm here.",
)
