"""Arms that several claims share; equal arms are trained once.

Engines are named and not left to defaults, so that work on speed changes no result: Jordan's five
steps, with which these rules were published, and, where a rule is held against Aurora, the polar
factor that Aurora has here, so that nothing else differs.
"""

from dataclasses import replace

from polarlight.lab.claims.claim import Arm
from polarlight.lab.train.recipes import TrainingRecipe
from polarlight.linalg import NewtonSchulz, polar_express
from polarlight.linalg.schedules import JORDAN
from polarlight.rules import AdamWRule, BalancedPolar, aurora, muon, muoneq, normuon, unormuon
from polarlight.stages import MatchRmsAdamW

PUBLISHED = NewtonSchulz(JORDAN)
FINE = NewtonSchulz(polar_express(6))
BALANCED = BalancedPolar(FINE)

MUON = Arm(recipe=TrainingRecipe(rule=lambda: muon(polar=PUBLISHED), lr=0.02, about="Muon"))
NORMUON = Arm(
    recipe=TrainingRecipe(rule=lambda: normuon(polar=PUBLISHED), lr=0.02, about="NorMuon")
)
UNORMUON = Arm(
    recipe=TrainingRecipe(rule=lambda: unormuon(polar=PUBLISHED), lr=0.02, about="U-NorMuon")
)
AURORA = Arm(recipe=TrainingRecipe(rule=lambda: aurora(BALANCED), lr=0.02, about="Aurora"))
FINE_MUON = Arm(recipe=TrainingRecipe(rule=lambda: muon(polar=FINE), lr=0.02, about="Muon, fine"))
FINE_NORMUON = Arm(
    recipe=TrainingRecipe(rule=lambda: normuon(polar=FINE), lr=0.02, about="NorMuon, fine")
)
FINE_UNORMUON = Arm(
    recipe=TrainingRecipe(rule=lambda: unormuon(polar=FINE), lr=0.02, about="U-NorMuon, fine")
)
ADAMW = Arm(
    recipe=TrainingRecipe(rule=AdamWRule, lr=1e-3, momentum=0.9, about="AdamW"),
    lrs=(5e-4, 1e-3, 2e-3),
)
MUONEQ = Arm(
    recipe=TrainingRecipe(rule=lambda: muoneq(polar=PUBLISHED), lr=4e-3, about="MuonEq-R"),
    lrs=(2e-3, 4e-3, 8e-3),
)
MUON_RMS = Arm(
    recipe=TrainingRecipe(
        rule=lambda: muon(polar=PUBLISHED, scale=MatchRmsAdamW()),
        lr=4e-3,
        about="Muon, RMS-matched",
    ),
    lrs=(2e-3, 4e-3, 8e-3),
)


def at(arm: Arm, **changes: object) -> Arm:
    """The arm in a plan that differs in these entries."""
    return replace(arm, changes={**arm.changes, **changes})
