"""polarlight: spectral optimizers for PyTorch, with Aurora at their centre.

    optimizer = polarlight.Aurora(model, lr=0.02, aux_lr=3e-3)

Given a module, hidden matrices get the method and everything else gets AdamW;
`print(explain(optimizer))` shows which parameter gets which rule, and why. What ablations need is
in the public submodules: `rules`, `linalg`, `stages`, `view`, `routing`, `recipes`, `optimizer`,
`properties`, `diagnostics`, `hooks`, `scheduling`, `migration`, `diloco`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from polarlight import linalg, optimizer, routing, rules, stages, view
from polarlight.execution.batched import Batched
from polarlight.execution.job import OneByOne
from polarlight.execution.sharded.executor import Sharded
from polarlight.optimizer import NonFinite, SpectralOptimizer, clip_grad_norm_
from polarlight.routing import Part, Role, Route, explain, route
from polarlight.rule import UpdateRule
from polarlight.rules.aurora import Aurora
from polarlight.rules.freon import Freon
from polarlight.rules.kaon import Kaon
from polarlight.rules.kl_soap import KLSOAP
from polarlight.rules.muon import Muon
from polarlight.rules.muoneq import MuonEq
from polarlight.rules.normuon import NorMuon
from polarlight.rules.polar_adamw import PolarAdamW
from polarlight.rules.polargrad import PolarGrad
from polarlight.rules.soap import SOAP
from polarlight.rules.unormuon import UNorMuon

if TYPE_CHECKING:
    from polarlight import (
        diagnostics,
        diloco,
        hooks,
        migration,
        properties,
        recipes,
        scheduling,
    )
    from polarlight.diagnostics import NeuronMonitor, RuleCheck

__version__ = "0.2.0"

__all__ = [
    "KLSOAP",
    "SOAP",
    "Aurora",
    "Batched",
    "Freon",
    "Kaon",
    "Muon",
    "MuonEq",
    "NeuronMonitor",
    "NonFinite",
    "NorMuon",
    "OneByOne",
    "Part",
    "PolarAdamW",
    "PolarGrad",
    "Role",
    "Route",
    "RuleCheck",
    "Sharded",
    "SpectralOptimizer",
    "UNorMuon",
    "UpdateRule",
    "clip_grad_norm_",
    "diagnostics",
    "diloco",
    "explain",
    "hooks",
    "linalg",
    "migration",
    "optimizer",
    "properties",
    "recipes",
    "route",
    "routing",
    "rules",
    "scheduling",
    "stages",
    "view",
]

_ON_USE = {"NeuronMonitor": "diagnostics", "RuleCheck": "diagnostics"}
"""Names that are imported when they are first asked for, and the submodule that has them."""

_SUBMODULES = (
    *("diagnostics", "diloco", "hooks", "integrations", "migration", "properties", "recipes"),
    "scheduling",
)
"""Submodules that are imported when they are first asked for."""

MOVED = {
    "linalg": """AOL AutoPolar Chaotic EigenPolar ExactPolar ExactPower Frobenius GramNewtonSchulz
        GramSide NewtonSchulz OneSidedPolar QDWH Rates RationalPower RegularisedPolar Schatten4
        Schatten8 Schedule ZoloPD polar_express""",
    "linalg.schedules": """CANS CUBIC CUBIC5 DEEPSEEK_V4 JORDAN KAON MAXIMAL_SLOPE MODDED_NANOGPT
        PADE_QUINTIC SIMPLE_QUINTIC TURBO_MUON YOU""",
    "rules": """AdamWRule BalancedPolar ExactBalanced FeedbackPolar MeanNorm OwnSize PolarSize
        RiemannianPolar RowRms SumNorm WarmPolar aurora freon kaon kl_soap muon muoneq normuon
        normuon_paper one_sided polar_adamw polar_then_row polargrad polargrad_polar_first row_norm
        row_then_polar rows_after shampoo soap unormuon with_adamw""",
    "stages": """Columns EMA EquilibrateBoth EquilibrateColumns EquilibrateRows HeavyBall
        InBfloat16 MatchRmsAdamW OnSide Original Pairs PowerIteration RawGradient RmsToRms Side
        Unscaled centred oriented""",
    "view": "Flattened Heads Interleaved RowBlocks Taps Transposed Whole",
    "routing": "Explanation infer_roles per_head view_from_json view_to_json",
    "recipes": "aurora_mlp muon_with_adamw symmetric_stack",
    "diloco": "Outer OuterNesterov client_gradient displacement sample_clients",
    "optimizer": "Observation Probe with_stochastic_rounding",
}
"""Public submodule -> the names that stood in the root in 0.1.0."""


def __getattr__(name: str) -> Any:
    """Import submodules and diagnostics on first use; name the new place of what moved."""
    if name in _SUBMODULES:
        return import_module(f"polarlight.{name}")
    if name in _ON_USE:
        return getattr(import_module(f"polarlight.{_ON_USE[name]}"), name)
    for place, names in MOVED.items():
        if name in names.split():
            raise AttributeError(f"polarlight.{name} moved: use polarlight.{place}.{name}")
    raise AttributeError(f"module 'polarlight' has no attribute {name!r}")
