"""polarlight: spectral optimizers for PyTorch, with Aurora at their centre.

    optimizer = polarlight.Aurora(model, lr=0.02, aux_lr=3e-3)

Given a module, hidden matrices get the method and everything else gets AdamW;
`print(explain(optimizer))` shows who got what, and why.
"""

from polarlight.execution.batched import Batched
from polarlight.execution.one_by_one import OneByOne
from polarlight.linalg.coefficients import (
    DEEPSEEK_V4,
    JORDAN,
    SIMPLE_QUINTIC,
    YOU,
    Schedule,
)
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.svd import ExactPolar
from polarlight.optimizer import SpectralOptimizer
from polarlight.probe import Observation, Probe
from polarlight.roles import Role, infer_roles
from polarlight.routing import Route, explain, route
from polarlight.rule import UpdateRule
from polarlight.rules import (
    AdamWRule,
    Aurora,
    BalancedPolar,
    FeedbackPolar,
    Muon,
    MuonEq,
    NorMuon,
    RiemannianPolar,
    UNorMuon,
    WarmPolar,
    aurora,
    muon,
    muoneq,
    normuon,
    normuon_paper,
    rows_after,
    unormuon,
    with_adamw,
)
from polarlight.stages.equilibrate import EquilibrateBoth, EquilibrateColumns, EquilibrateRows
from polarlight.stages.momentum import EMA, HeavyBall, RawGradient
from polarlight.stages.scales import MatchRmsAdamW, Original, RmsToRms, Unscaled
from polarlight.stages.side import OnSide, Side
from polarlight.view import Heads, RowBlocks, Transposed, Whole

__version__ = "0.1.0"

__all__ = [
    "DEEPSEEK_V4",
    "EMA",
    "JORDAN",
    "SIMPLE_QUINTIC",
    "YOU",
    "AdamWRule",
    "Aurora",
    "BalancedPolar",
    "Batched",
    "EquilibrateBoth",
    "EquilibrateColumns",
    "EquilibrateRows",
    "ExactPolar",
    "FeedbackPolar",
    "Heads",
    "HeavyBall",
    "MatchRmsAdamW",
    "Muon",
    "MuonEq",
    "NewtonSchulz",
    "NorMuon",
    "Observation",
    "OnSide",
    "OneByOne",
    "Original",
    "Probe",
    "RawGradient",
    "RiemannianPolar",
    "RmsToRms",
    "Role",
    "Route",
    "RowBlocks",
    "Schedule",
    "Side",
    "SpectralOptimizer",
    "Transposed",
    "UNorMuon",
    "Unscaled",
    "UpdateRule",
    "WarmPolar",
    "Whole",
    "aurora",
    "explain",
    "infer_roles",
    "muon",
    "muoneq",
    "normuon",
    "normuon_paper",
    "polar_express",
    "route",
    "rows_after",
    "unormuon",
    "with_adamw",
]
