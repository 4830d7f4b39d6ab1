"""polarlight: spectral optimizers for PyTorch, with Aurora at their centre.

    optimizer = polarlight.Aurora(model, lr=0.02, aux_lr=3e-3)

Given a module, hidden matrices get the method and everything else gets AdamW;
`print(explain(optimizer))` shows who got what, and why.
"""

from polarlight.diloco import Outer, OuterNesterov, client_gradient, displacement, sample_clients
from polarlight.execution.batched import Batched
from polarlight.execution.one_by_one import OneByOne
from polarlight.execution.sharded.executor import Sharded
from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.chaotic import KAON, MAXIMAL_SLOPE, Chaotic
from polarlight.linalg.coefficients import (
    CANS,
    CUBIC,
    CUBIC5,
    DEEPSEEK_V4,
    JORDAN,
    PADE_QUINTIC,
    SIMPLE_QUINTIC,
    TURBO_MUON,
    YOU,
    Schedule,
)
from polarlight.linalg.eigen import EigenPolar
from polarlight.linalg.gram import GramNewtonSchulz
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import AOL, Frobenius, Schatten4, Schatten8
from polarlight.linalg.one_sided import GramSide, OneSidedPolar
from polarlight.linalg.polar_express import MODDED_NANOGPT, polar_express
from polarlight.linalg.qdwh import QDWH
from polarlight.linalg.rates import Rates
from polarlight.linalg.regularised import RegularisedPolar
from polarlight.linalg.spectral_power import ExactPower, RationalPower
from polarlight.linalg.svd import ExactPolar
from polarlight.linalg.zolopd import ZoloPD
from polarlight.optimizer.apply import with_stochastic_rounding
from polarlight.optimizer.masked import NonFinite
from polarlight.optimizer.probe import Observation, Probe
from polarlight.optimizer.spectral import SpectralOptimizer
from polarlight.recipes import aurora_mlp, muon_with_adamw, symmetric_stack
from polarlight.routing.explain import Explanation, explain
from polarlight.routing.roles import Part, Role, infer_roles
from polarlight.routing.route import Route, per_head, route
from polarlight.routing.view_text import view_from_json, view_to_json
from polarlight.rule import UpdateRule
from polarlight.rules import (
    KLSOAP,
    SOAP,
    AdamWRule,
    Aurora,
    BalancedPolar,
    ExactBalanced,
    FeedbackPolar,
    Freon,
    Kaon,
    MeanNorm,
    Muon,
    MuonEq,
    NorMuon,
    OwnSize,
    PolarAdamW,
    PolarGrad,
    PolarSize,
    RiemannianPolar,
    RowRms,
    SumNorm,
    UNorMuon,
    WarmPolar,
    aurora,
    freon,
    kaon,
    kl_soap,
    muon,
    muoneq,
    normuon,
    normuon_paper,
    one_sided,
    polar_adamw,
    polar_then_row,
    polargrad,
    polargrad_polar_first,
    row_norm,
    row_then_polar,
    rows_after,
    shampoo,
    soap,
    unormuon,
    with_adamw,
)
from polarlight.stages.centre import centred
from polarlight.stages.eigenbasis import PowerIteration
from polarlight.stages.equilibrate import EquilibrateBoth, EquilibrateColumns, EquilibrateRows
from polarlight.stages.momentum import EMA, HeavyBall, InBfloat16, RawGradient
from polarlight.stages.orientation import Columns, Pairs, oriented
from polarlight.stages.scales import MatchRmsAdamW, Original, RmsToRms, Unscaled
from polarlight.stages.side import OnSide, Side
from polarlight.view import (
    Flattened,
    Heads,
    Interleaved,
    RowBlocks,
    Slices,
    Taps,
    Transposed,
    Whole,
)

__version__ = "0.1.0"

__all__ = [
    "AOL",
    "CANS",
    "CUBIC",
    "CUBIC5",
    "DEEPSEEK_V4",
    "EMA",
    "JORDAN",
    "KAON",
    "KLSOAP",
    "MAXIMAL_SLOPE",
    "MODDED_NANOGPT",
    "PADE_QUINTIC",
    "QDWH",
    "SIMPLE_QUINTIC",
    "SOAP",
    "TURBO_MUON",
    "YOU",
    "AdamWRule",
    "Aurora",
    "AutoPolar",
    "BalancedPolar",
    "Batched",
    "Chaotic",
    "Columns",
    "EigenPolar",
    "EquilibrateBoth",
    "EquilibrateColumns",
    "EquilibrateRows",
    "ExactBalanced",
    "ExactPolar",
    "ExactPower",
    "Explanation",
    "FeedbackPolar",
    "Flattened",
    "Freon",
    "Frobenius",
    "GramNewtonSchulz",
    "GramSide",
    "Heads",
    "HeavyBall",
    "InBfloat16",
    "Interleaved",
    "Kaon",
    "MatchRmsAdamW",
    "MeanNorm",
    "Muon",
    "MuonEq",
    "NewtonSchulz",
    "NonFinite",
    "NorMuon",
    "Observation",
    "OnSide",
    "OneByOne",
    "OneSidedPolar",
    "Original",
    "Outer",
    "OuterNesterov",
    "OwnSize",
    "Pairs",
    "Part",
    "PolarAdamW",
    "PolarGrad",
    "PolarSize",
    "PowerIteration",
    "Probe",
    "Rates",
    "RationalPower",
    "RawGradient",
    "RegularisedPolar",
    "RiemannianPolar",
    "RmsToRms",
    "Role",
    "Route",
    "RowBlocks",
    "RowRms",
    "Schatten4",
    "Schatten8",
    "Schedule",
    "Sharded",
    "Side",
    "Slices",
    "SpectralOptimizer",
    "SumNorm",
    "Taps",
    "Transposed",
    "UNorMuon",
    "Unscaled",
    "UpdateRule",
    "WarmPolar",
    "Whole",
    "ZoloPD",
    "aurora",
    "aurora_mlp",
    "centred",
    "client_gradient",
    "displacement",
    "explain",
    "freon",
    "infer_roles",
    "kaon",
    "kl_soap",
    "muon",
    "muon_with_adamw",
    "muoneq",
    "normuon",
    "normuon_paper",
    "one_sided",
    "oriented",
    "per_head",
    "polar_adamw",
    "polar_express",
    "polar_then_row",
    "polargrad",
    "polargrad_polar_first",
    "route",
    "row_norm",
    "row_then_polar",
    "rows_after",
    "sample_clients",
    "shampoo",
    "soap",
    "symmetric_stack",
    "unormuon",
    "view_from_json",
    "view_to_json",
    "with_adamw",
    "with_stochastic_rounding",
]
