"""Aurora beats Muon and NorMuon, the more the wider the MLP."""

from polarlight.lab.claims.arms import AURORA, FINE_MUON, FINE_NORMUON, at
from polarlight.lab.claims.claim import Area, Arm, Claim
from polarlight.lab.claims.verdict import Above, lower

_WIDTHS = (1, 2, 4, 8, 16)
_RULES = {"muon": FINE_MUON, "aurora": AURORA}
_MLPS = {"swiglu": "", "relu2": "relu2 "}


def _label(rule: str, mlp: str, width: int) -> str:
    return f"{rule} {_MLPS[mlp]}{width}x"


def _arms() -> dict[str, Arm]:
    found = {"normuon 4x": FINE_NORMUON}
    for mlp in _MLPS:
        kind = {} if mlp == "swiglu" else {"mlp": mlp}
        for width in _WIDTHS:
            for rule, arm in _RULES.items():
                found[_label(rule, mlp, width)] = at(arm, expansion=float(width), **kind)
    return found


def _lr_of() -> dict[str, str]:
    own = {_label(rule, mlp, 4) for rule in _RULES for mlp in _MLPS} | {"normuon 4x"}
    return {label: f"{label.rsplit(' ', 1)[0]} 4x" for label in _arms() if label not in own}


def _growth(mlp: str) -> dict[str, float]:
    """Least-squares slope of the gain over the logarithm of the factor: weights of the losses."""
    centred = [i - (len(_WIDTHS) - 1) / 2 for i in range(len(_WIDTHS))]
    square = sum(x * x for x in centred)
    signs = {"muon": 1 / square, "aurora": -1 / square}
    return {
        _label(rule, mlp, width): sign * x
        for rule, sign in signs.items()
        for width, x in zip(_WIDTHS, centred, strict=True)
    }


CLAIM = Claim(
    name="aurora-gain",
    says="Aurora has a lower loss than Muon and NorMuon at equal steps; its gain over Muon grows "
    "with the expansion factor of the MLP, for SwiGLU and squared ReLU.",
    source="Aurora, arXiv 2606.27715, abstract",
    area=Area.AURORA,
    dated="2026-11-25",
    effect="Published: 2.26 against 2.31 (Muon) and 2.33 (NorMuon), 1.1 billion parameters; "
    "the growth with the expansion factor without numbers.",
    arms=_arms(),
    lr_of=_lr_of(),
    checks=(
        lower("aurora 4x", "muon 4x", published=0.05),
        lower("aurora 4x", "normuon 4x", published=0.07),
        Above("growth of the gain per doubling of the factor, SwiGLU", _growth("swiglu")),
        Above("growth of the gain per doubling of the factor, squared ReLU", _growth("relu2")),
    ),
    notes="Growth is the slope of a straight line through the gains at the five factors. Learning "
    "rates are those of 4x, of each kind of MLP: a rate that suits one method better at another "
    "width is part of the gain there. At 1x no matrix is tall, and both methods are the same.",
)
