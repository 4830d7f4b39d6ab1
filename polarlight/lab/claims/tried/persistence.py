"""Once starved, always starved."""

from polarlight.lab.claims.arms import FINE_MUON, at
from polarlight.lab.claims.claim import Area, Claim
from polarlight.lab.claims.verdict import least

CLAIM = Claim(
    name="persistence",
    says="Rows that starve under Muon never recover.",
    source="Tilde Research, Aurora blog (2026)",
    area=Area.STARVATION,
    dated="2026-11-25",
    arms={"muon": at(FINE_MUON, steps=500, validate_every=500)},
    checks=(
        least("muon", "never recovered", 0.9),
        least("muon", "starved in the end", 0.9),
    ),
    reported={
        "muon": ("starved", "starved in the end by the momentum", "never recovered by the momentum")
    },
    notes="Of all rows that were ever seen below 0.1 of an equal share of the update: the fraction "
    "seen there in every sample since (`never recovered`; samples are 25 steps apart; a crossing "
    "of the threshold, however short, is a recovery), and the fraction seen there in the last "
    "sample (`starved in the end`), whatever lay between.",
)
