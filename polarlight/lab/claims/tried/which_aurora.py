"""Comparison of Aurora's forms: training loss, and whether better alignment lowers it."""

from collections.abc import Callable

from polarlight.lab.claims.arms import BALANCED, FINE
from polarlight.lab.claims.claim import Area, Arm, Claim
from polarlight.lab.claims.solvers import ExactFollowed, PolarFirst
from polarlight.lab.claims.verdict import lower
from polarlight.lab.train.recipes import TrainingRecipe
from polarlight.rule import UpdateRule
from polarlight.rules import FeedbackPolar, RiemannianPolar, WarmPolar, aurora


def _arm(rule: Callable[[], UpdateRule], about: str) -> Arm:
    return Arm(recipe=TrainingRecipe(rule=rule, lr=0.02, about=about))


ARMS = {
    "release": _arm(lambda: aurora(BALANCED), "two fresh rounds"),
    "paper": _arm(lambda: aurora(FeedbackPolar(FINE)), "feedback"),
    "polar first": _arm(lambda: aurora(PolarFirst(FINE)), "polar factor first"),
    "warm": _arm(lambda: aurora(WarmPolar(FINE)), "row scale kept"),
    "warm, exponent": _arm(
        lambda: aurora(WarmPolar(FINE, exponent=None)), "row scale kept, exponent of the shape"
    ),
    "riemannian": _arm(lambda: aurora(RiemannianPolar()), "ascent"),
    "exact": _arm(lambda: aurora(ExactFollowed()), "the problem solved"),
}
OTHERS = [label for label in ARMS if not label.startswith("warm")]

CLAIM = Claim(
    name="which-aurora",
    says="The row scale that is kept between steps (warm) trains better than every other way to "
    "balance rows: the release's fresh rounds, the paper's feedback, alternation that starts with "
    "the polar factor, Riemannian ascent and the exact solution; and better alignment trains "
    "better: the exact solution has a lower loss than the release's.",
    source="a first trial of ours for the warm scale; the Aurora blog for alignment",
    area=Area.AURORA,
    dated="2026-11-25",
    arms=ARMS,
    checks=(
        *(lower("warm", other) for other in OTHERS),
        lower("exact", "release", "the exact solution has a lower loss than the release's"),
    ),
    reported=dict.fromkeys(ARMS, ("alignment", "starved", "row norm spread")),
    notes="Exact: Newton's method from the solution of the step before, three steps in float32; "
    "within half a percent of the maximum (`tests/lab/claims/test_solvers.py`), rows even to 1e-4.",
)
