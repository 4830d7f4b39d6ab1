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
    notes="Of all rows that were ever seen below .1 of an equal share of the update: the fraction "
    "seen there at every look since (`never recovered`; looks are 25 steps apart, and one crossing "
    "of the threshold, however short, is a recovery), and the fraction seen there at the last look "
    "(`starved in the end`), whatever lay between.",
)
