"""One paper, one file: the rules as values. Their torch-style classes are in `polarlight`.

Every file of the folder is imported: what it registers is in this namespace.
"""

from importlib import import_module
from pkgutil import iter_modules

from polarlight.rules.adamw import AdamWRule
from polarlight.rules.aurora import aurora
from polarlight.rules.aurora_exact import ExactBalanced
from polarlight.rules.aurora_paper import FeedbackPolar
from polarlight.rules.aurora_release import BalancedPolar
from polarlight.rules.aurora_warm import WarmPolar
from polarlight.rules.freon import freon
from polarlight.rules.hybrid import polar_then_row, row_then_polar
from polarlight.rules.kaon import kaon
from polarlight.rules.kl_soap import kl_soap
from polarlight.rules.lora_product import LoraProduct
from polarlight.rules.muon import muon
from polarlight.rules.muoneq import muoneq, rows_after
from polarlight.rules.normuon import normuon, normuon_paper
from polarlight.rules.one_sided import one_sided
from polarlight.rules.polar_adamw import polar_adamw
from polarlight.rules.polargrad import polargrad, polargrad_polar_first
from polarlight.rules.registration import REGISTERED, RuleEntry, registered_rule
from polarlight.rules.riemannian_aurora import RiemannianPolar
from polarlight.rules.row_norm import RowRms, row_norm
from polarlight.rules.shampoo import shampoo
from polarlight.rules.shared_arguments import Shared
from polarlight.rules.soap import soap
from polarlight.rules.torch_style import WithAdamW
from polarlight.rules.unormuon import unormuon
from polarlight.rules.with_adamw import with_adamw
from polarlight.stages.sized_power import MeanNorm, OwnSize, PolarSize, SumNorm

__all__ = [
    "REGISTERED",
    "AdamWRule",
    "BalancedPolar",
    "ExactBalanced",
    "FeedbackPolar",
    "LoraProduct",
    "MeanNorm",
    "OwnSize",
    "PolarSize",
    "RiemannianPolar",
    "RowRms",
    "RuleEntry",
    "Shared",
    "SumNorm",
    "WarmPolar",
    "WithAdamW",
    "aurora",
    "freon",
    "kaon",
    "kl_soap",
    "muon",
    "muoneq",
    "normuon",
    "normuon_paper",
    "one_sided",
    "polar_adamw",
    "polar_then_row",
    "polargrad",
    "polargrad_polar_first",
    "registered_rule",
    "row_norm",
    "row_then_polar",
    "rows_after",
    "shampoo",
    "soap",
    "unormuon",
    "with_adamw",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
discovered = {name: entry.make for name, entry in REGISTERED.items() if name not in __all__}
"""Rules that are registered by a file of this folder and imported nowhere above."""

globals().update(discovered)
__all__.extend(discovered)
