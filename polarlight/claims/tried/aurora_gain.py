"""Aurora beats Muon and NorMuon, the more the wider the MLP."""

from polarlight.claims.arms import AURORA, FINE_MUON, FINE_NORMUON, at
from polarlight.claims.claim import Claim
from polarlight.claims.verdict import Above, lower

_WIDTHS = (1, 4, 16)

CLAIM = Claim(
    name="aurora-gain",
    says="Aurora has a lower loss than Muon and NorMuon at equal steps; its gain over Muon grows "
    "with the expansion factor of the MLP, for SwiGLU and squared ReLU.",
    source="Aurora, arXiv 2606.27715, abstract",
    arms={
        "normuon 4x": FINE_NORMUON,
        **{f"muon {w}x": at(FINE_MUON, expansion=float(w)) for w in _WIDTHS},
        **{f"aurora {w}x": at(AURORA, expansion=float(w)) for w in _WIDTHS},
        **{f"muon relu2 {w}x": at(FINE_MUON, expansion=float(w), mlp="relu2") for w in (1, 16)},
        **{f"aurora relu2 {w}x": at(AURORA, expansion=float(w), mlp="relu2") for w in (1, 16)},
    },
    lr_of={
        "muon 1x": "muon 4x",
        "muon 16x": "muon 4x",
        "aurora 1x": "aurora 4x",
        "aurora 16x": "aurora 4x",
        **{f"{rule} relu2 {w}x": f"{rule} 4x" for rule in ("muon", "aurora") for w in (1, 16)},
    },
    checks=(
        lower("aurora 4x", "muon 4x"),
        lower("aurora 4x", "normuon 4x"),
        *(
            Above(
                f"gain at 16x minus gain at 1x, {kind or 'SwiGLU'}",
                {f"muon {k}16x": 1, f"aurora {k}16x": -1, f"muon {k}1x": -1, f"aurora {k}1x": 1},
            )
            for kind, k in (("", ""), ("squared ReLU", "relu2 "))
        ),
    ),
    notes="Factors 1, 4 and 16 of the paper's 1, 2, 4, 8, 16; learning rates from SwiGLU at "
    "4x: a rate that suits one method better at another width is part of the gain there. At 1x no "
    "matrix is tall, and both methods are the same.",
)
