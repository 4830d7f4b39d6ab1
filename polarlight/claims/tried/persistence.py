"""Once starved, always starved."""

from polarlight.claims.arms import MUON, at
from polarlight.claims.claim import Claim
from polarlight.claims.verdict import least

CLAIM = Claim(
    name="persistence",
    says="Rows that starve under Muon never recover.",
    source="Tilde Research, Aurora blog (2026)",
    arms={"muon": at(MUON, steps=500, validate_every=500)},
    checks=(least("muon", "never recovered", 0.9),),
    reported={"muon": ("starved", "starved by the momentum")},
    notes="Of all rows that were ever seen below .1 of an equal share of the update, the fraction "
    "seen there at every look since; looks are 25 steps apart. A row that "
    "crosses the threshold once, however little, counts as recovered.",
)
