"""Under Muon a quarter of the neurons starve early; under Aurora and U-NorMuon none do."""

from polarlight.lab.claims.arms import AURORA, FINE_MUON, FINE_UNORMUON, at
from polarlight.lab.claims.claim import Area, Claim
from polarlight.lab.claims.verdict import least, most

_STEPS = {"steps": 500, "validate_every": 500}

_DEFINITIONS = ("starved neurons", "silent neurons")
"""By leverage, and by activation."""

CLAIM = Claim(
    name="starvation",
    says="Under Muon more than a quarter of the MLP's neurons starve by step 500, under Aurora and "
    "U-NorMuon none, by the leverage of the update and by activation.",
    source="Tilde Research, Aurora blog (2026); no threshold is published, 0.1 of an equal share "
    "here",
    area=Area.STARVATION,
    dated="2026-11-25",
    arms={
        "muon": at(FINE_MUON, **_STEPS),
        "aurora": at(AURORA, **_STEPS),
        "unormuon": at(FINE_UNORMUON, **_STEPS),
    },
    checks=(
        *(least("muon", measure, 0.25) for measure in _DEFINITIONS),
        *(most(arm, measure, 0.01) for arm in ("aurora", "unormuon") for measure in _DEFINITIONS),
    ),
    reported=dict.fromkeys(
        ("muon", "aurora", "unormuon"),
        ("starved", "starved rows below 0.25", "starved by the momentum"),
    ),
    notes="By leverage a neuron is starved if both of its rows, gate's and up's, have less than "
    "0.1 of an equal share of the update; `starved` counts rows. By activation it is silent if its "
    "mean magnitude before the down projection is less than 0.1 of the layer's. Published at 340 "
    "million parameters; starvation is said to grow with size.",
)
