"""More exact polar factors, or only a steeper slope at zero?"""

from dataclasses import replace

from polarlight.lab.claims.claim import Area, Arm, Claim
from polarlight.lab.claims.verdict import Above, Within, lower
from polarlight.lab.train.recipes import TrainingRecipe
from polarlight.linalg import ExactPolar, NewtonSchulz, polar_express
from polarlight.linalg.coefficients import SIMPLE_QUINTIC, constant
from polarlight.linalg.schedules import JORDAN
from polarlight.linalg.slot import MatrixMap
from polarlight.rule import UpdateRule
from polarlight.rules import kaon, muon
from polarlight.stages.renormalise import PolarNorm


def _simple(steps: int) -> NewtonSchulz:
    step = SIMPLE_QUINTIC.steps[0]
    return NewtonSchulz(constant("simple", step, steps, source=SIMPLE_QUINTIC.source))


def _polar(polar: MatrixMap) -> Arm:
    """Muon with this map, its update brought to the size of a polar factor."""

    def rule() -> UpdateRule:
        return replace(muon(polar=polar), post=(PolarNorm(),))

    return Arm(recipe=TrainingRecipe(rule=rule, lr=0.02, about=f"{polar}, sized"))


CLAIM = Claim(
    name="exactness",
    says="More exact polar factors give a lower loss; and not only because they lift small "
    "singular values more: at equal slope at zero and equal size of the update the exact one is "
    "better.",
    source="Aurora blog (2026) and Polar Express, arXiv 2505.16932, for it; arXiv 2606.00371 and "
    "Kaon, arXiv 2605.11181, against it",
    area=Area.POLAR,
    dated="2026-11-25",
    effect="Published for Polar Express against Jordan's steps: 3.588 and 3.639, 124 million "
    "parameters; against it: differences below 0.003.",
    arms={
        "simple x1": _polar(_simple(1)),
        "simple x3": _polar(_simple(3)),
        "simple x10": _polar(_simple(10)),
        "jordan x5": _polar(NewtonSchulz(JORDAN)),
        "polar express x5": _polar(NewtonSchulz(polar_express(5))),
        "exact": _polar(ExactPolar()),
        "kaon": Arm(recipe=TrainingRecipe(rule=kaon, lr=0.02, about="chaotic spectrum")),
    },
    checks=(
        lower("simple x3", "simple x1"),
        lower("simple x10", "simple x3"),
        lower("exact", "jordan x5", published=0.051),
        Above(
            "at equal slope (about 1000): Kaon's loss above that of simple x10",
            {"kaon": 1.0, "simple x10": -1.0},
        ),
        Within(
            "at equal slope, simple x10 and Polar Express agree to 0.01",
            {"simple x10": 1.0, "polar express x5": -1.0},
            0.01,
        ),
    ),
    notes="Slopes at zero: simple x10 1024, Polar Express x5 about 1000, Kaon 966. Every update is "
    "brought to the Frobenius norm of a polar factor, whatever its singular values: without that "
    "one simple step leaves it a sixth as large.",
)
