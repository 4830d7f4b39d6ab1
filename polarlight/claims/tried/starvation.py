"""Under Muon a quarter of the neurons starve early; under Aurora and U-NorMuon none do."""

from polarlight.claims.arms import AURORA, FINE_MUON, FINE_UNORMUON, at
from polarlight.claims.claim import Claim
from polarlight.claims.verdict import least, lower, most

_STEPS = {"steps": 500, "validate_every": 500}

CLAIM = Claim(
    name="starvation",
    says="Under Muon more than a quarter of the MLP's neurons starve by step 500, under Aurora and "
    "U-NorMuon none, by the leverage of the update and by activation.",
    source="Tilde Research, Aurora blog (2026); no threshold is published, .1 of an equal share "
    "here",
    arms={
        "muon": at(FINE_MUON, **_STEPS),
        "aurora": at(AURORA, **_STEPS),
        "unormuon": at(FINE_UNORMUON, **_STEPS),
    },
    checks=(
        least("muon", "starved", 0.25),
        most("aurora", "starved", 0.01),
        most("unormuon", "starved", 0.01),
        lower("aurora", "muon", "Muon has more silent neurons than Aurora", "silent neurons"),
    ),
    reported=dict.fromkeys(
        ("muon", "aurora", "unormuon"),
        ("starved neurons", "starved rows below .25", "starved by the momentum", "silent neurons"),
    ),
    notes="`starved` counts rows; a neuron of a gated MLP is among the `starved neurons` if both "
    "of its rows are. Published at 340 million parameters; starvation is said to grow with size.",
)
