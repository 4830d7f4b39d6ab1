"""Even rows upstream keep the down projection's columns even."""

from polarlight.lab.claims.arms import MUON, UNORMUON
from polarlight.lab.claims.claim import Area, Claim
from polarlight.lab.claims.verdict import lower

CLAIM = Claim(
    name="down-columns",
    says="U-NorMuon keeps the columns of the down projection even, which it never touches.",
    source="Tilde Research, Aurora blog (2026)",
    area=Area.ROWS,
    dated="2026-11-24",
    arms={"muon": MUON, "unormuon": UNORMUON},
    checks=(
        lower("unormuon", "muon", "columns of the weight are more even", "spread of down columns"),
        lower("unormuon", "muon", "columns of the update are more even", "spread of down updates"),
    ),
)
