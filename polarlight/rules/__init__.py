"""One paper, one small file: each rule and the torch-style class that people type."""

from polarlight.rules.adamw import AdamWRule, with_adamw
from polarlight.rules.aurora import Aurora, BalancedPolar, aurora
from polarlight.rules.aurora_paper import FeedbackPolar
from polarlight.rules.aurora_warm import WarmPolar
from polarlight.rules.muon import Muon, muon
from polarlight.rules.muoneq import MuonEq, muoneq, rows_after
from polarlight.rules.normuon import NorMuon, normuon, normuon_paper
from polarlight.rules.riemannian_aurora import RiemannianPolar
from polarlight.rules.unormuon import UNorMuon, unormuon

__all__ = [
    "AdamWRule",
    "Aurora",
    "BalancedPolar",
    "FeedbackPolar",
    "Muon",
    "MuonEq",
    "NorMuon",
    "RiemannianPolar",
    "UNorMuon",
    "WarmPolar",
    "aurora",
    "muon",
    "muoneq",
    "normuon",
    "normuon_paper",
    "rows_after",
    "unormuon",
    "with_adamw",
]
