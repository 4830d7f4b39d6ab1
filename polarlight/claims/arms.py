"""Arms that several claims share; equal arms are trained once."""

from dataclasses import replace

from polarlight import (
    AdamWRule,
    BalancedPolar,
    ExactPolar,
    MatchRmsAdamW,
    aurora,
    muon,
    muoneq,
    normuon,
    unormuon,
)
from polarlight.claims.claim import Arm
from polarlight.train.recipes import Recipe

EXACT = ExactPolar()
MUON = Arm(recipe=Recipe(rule=muon, lr=0.02, about="Muon"))
AURORA = Arm(recipe=Recipe(rule=lambda: aurora(BalancedPolar()), lr=0.02, about="Aurora"))
NORMUON = Arm(recipe=Recipe(rule=normuon, lr=0.02, about="NorMuon"))
UNORMUON = Arm(recipe=Recipe(rule=unormuon, lr=0.02, about="U-NorMuon"))
ADAMW = Arm(
    recipe=Recipe(rule=AdamWRule, lr=1e-3, momentum=0.9, about="AdamW"), lrs=(5e-4, 1e-3, 2e-3)
)
MUONEQ = Arm(
    recipe=Recipe(rule=muoneq, lr=4e-3, about="MuonEq-R"),
    lrs=(2e-3, 4e-3, 8e-3),
)
MUON_RMS = Arm(
    recipe=Recipe(rule=lambda: muon(scale=MatchRmsAdamW()), lr=4e-3, about="Muon, RMS-matched"),
    lrs=(2e-3, 4e-3, 8e-3),
)


def at(arm: Arm, **changes: object) -> Arm:
    """The arm in a plan that differs in these entries."""
    return replace(arm, changes={**arm.changes, **changes})
