"""Default arguments of rules, solvers and classes, written a second time."""

import math

import pytest
import torch

import polarlight
from polarlight import KLSOAP, SOAP, Freon, Kaon, PolarAdamW, PolarGrad
from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.chaotic import KAON, Chaotic
from polarlight.linalg.eigen import EigenPolar
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.nuclear import NuclearPolar
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.qdwh import QDWH
from polarlight.linalg.spectral_power import RationalPower
from polarlight.linalg.svd import ExactPolar
from polarlight.rule import UpdateRule
from polarlight.rules import (
    AdamWRule,
    BalancedPolar,
    ExactBalanced,
    FeedbackPolar,
    LoraProduct,
    RiemannianPolar,
    RowRms,
    WarmPolar,
    freon,
    kaon,
    kl_soap,
    normuon_paper,
    one_sided,
    polar_adamw,
    polar_then_row,
    polargrad,
    polargrad_polar_first,
    row_norm,
    row_then_polar,
    shampoo,
    soap,
    unormuon,
)
from polarlight.stages.adam import AdamDirection
from polarlight.stages.averaged_polar import AveragedPolar
from polarlight.stages.eigenbasis import PowerIteration
from polarlight.stages.equilibrate import (
    EquilibrateBoth,
    EquilibrateColumns,
    EquilibrateRows,
    PhaseSwitch,
)
from polarlight.stages.factors import GramFactors, KLFactors
from polarlight.stages.momentum import EMA, HeavyBall, InBfloat16, RawGradient
from polarlight.stages.orientation import Pairs
from polarlight.stages.renormalise import KeepNorm, MatchRms, PolarNorm
from polarlight.stages.rotated_adam import RotatedAdam
from polarlight.stages.scales import MatchRmsAdamW, Original, RmsToRms, Unscaled
from polarlight.stages.second_moment import RowSecondMoment
from polarlight.stages.shampoo import Shampoo
from polarlight.stages.side import OnSide, Side
from tests.nets import net

SIX = NewtonSchulz(polar_express(6))

SOLVERS = [
    (BalancedPolar(), BalancedPolar(SIX, rounds=2, exponent=0.5, floor=1e-4)),
    (FeedbackPolar(), FeedbackPolar(SIX, rounds=2, damping=0.5, floor=1e-4)),
    (RiemannianPolar(), RiemannianPolar(SIX, steps=3, step_size=0.1, cg_steps=20, floor=1e-4)),
    (
        ExactBalanced(),
        ExactBalanced(ExactPolar(), steps=20, cg_steps=20, floor=1e-4, dtype=torch.float64),
    ),
    (WarmPolar(), WarmPolar(AutoPolar(), exponent=0.5, follow=0.2, reach=10.0, floor=1e-4)),
    (LoraProduct(), LoraProduct(True, AutoPolar(), 1e-3, RmsToRms())),
    (AdamWRule(), AdamWRule(beta2=0.95, eps=1e-10, name="adamw")),
    (NuclearPolar(), NuclearPolar(QDWH(), 1.0)),
    (AveragedPolar(), AveragedPolar(QDWH(), 0.95)),
    (RowRms(), RowRms(0.2)),
]


@pytest.mark.parametrize(("default", "spelt_out"), SOLVERS, ids=lambda x: type(x).__name__)
def test_solvers_are_these(default, spelt_out):
    assert default == spelt_out
    assert type(default)() == spelt_out


STAGES = [
    (AdamDirection(), AdamDirection((0.9, 0.95), 1e-8)),
    (PowerIteration(), PowerIteration(rounds=1, sort=True, floor=None)),
    (EquilibrateRows(), EquilibrateRows(1e-4)),
    (EquilibrateColumns(), EquilibrateColumns(1e-4)),
    (EquilibrateBoth(), EquilibrateBoth(1e-4)),
    (GramFactors(), GramFactors(0.95)),
    (KLFactors(), KLFactors(0.9, initial=0.1, most=4000.0)),
    (EMA(), EMA(nesterov=True)),
    (HeavyBall(), HeavyBall(nesterov=True)),
    (InBfloat16(), InBfloat16(EMA(), stochastic=True)),
    (Pairs(), Pairs(interleaved=False)),
    (MatchRms(), MatchRms(0.2)),
    (MatchRmsAdamW(), MatchRmsAdamW(0.2)),
    (PolarNorm(), PolarNorm(most=math.inf)),
    (RowSecondMoment(), RowSecondMoment(0.95)),
    (Shampoo(), Shampoo((0.95, 0.95), -0.25, None)),
    (
        RotatedAdam(),
        RotatedAdam((0.95, 0.95), GramFactors(), PowerIteration(), 10, 1e-8, True, max_side=10_000),
    ),
]


@pytest.mark.parametrize(("default", "spelt_out"), STAGES, ids=lambda x: type(x).__name__)
def test_stages_are_these(default, spelt_out):
    assert default == spelt_out


AHEAD, BEHIND, SIDEWAYS = EMA(nesterov=True), EMA(nesterov=False), RawGradient()
ROWS, ADAMS = EquilibrateRows(1e-4), MatchRmsAdamW(0.2)
EVEN = KeepNorm(RowSecondMoment(0.95))
CHAOS = Chaotic(KAON)
BASES = {"every": 10, "eps": 1e-8, "bias_correction": True, "max_side": 10_000}


def value(name, momentum, middle, *, scale=Unscaled(), **more):
    """A rule; the factor is 1 unless one is given."""
    return UpdateRule(name=name, momentum=momentum, map=middle, scale=scale, **more)


RULES = {
    polarlight.rules.muon: value("muon", AHEAD, AutoPolar(), scale=Original()),
    polarlight.rules.normuon: value("normuon", AHEAD, AutoPolar(), post=(EVEN,), scale=Original()),
    normuon_paper: value(
        "normuon_paper", BEHIND, AutoPolar(), post=(RowSecondMoment(0.95), MatchRms(0.2))
    ),
    unormuon: value(
        "unormuon", AHEAD, AutoPolar(), post=(OnSide(Side.TALL, EVEN),), scale=Original()
    ),
    polarlight.rules.muoneq: value(
        "muoneq", HeavyBall(nesterov=True), AutoPolar(), balance=ROWS, scale=ADAMS
    ),
    polarlight.rules.aurora: value(
        "aurora", AHEAD, OnSide(Side.TALL, WarmPolar(), AutoPolar()), scale=Original()
    ),
    kaon: value("kaon", AHEAD, CHAOS, post=(PolarNorm(4.0),), scale=Original()),
    polargrad: value("polargrad", BEHIND, NuclearPolar(QDWH(), 1.0)),
    polargrad_polar_first: value("polargrad_polar_first", SIDEWAYS, AveragedPolar(QDWH(), 0.95)),
    polar_adamw: value(
        "polar_adamw",
        SIDEWAYS,
        AutoPolar(),
        balance=AdamDirection((0.9, 0.95), 1e-8),
        scale=Original(),
    ),
    one_sided: value("one_sided", BEHIND, EigenPolar(), scale=ADAMS),
    row_norm: value("row_norm", BEHIND, ROWS, scale=RowRms(0.2)),
    row_then_polar: value("row_then_polar", BEHIND, SIX, balance=ROWS, scale=ADAMS),
    polar_then_row: value("polar_then_row", BEHIND, SIX, post=(ROWS,), scale=RowRms(0.2)),
    shampoo: value("shampoo", SIDEWAYS, Shampoo((0.95, 0.95), -0.25)),
    soap: value(
        "soap",
        SIDEWAYS,
        RotatedAdam((0.95, 0.95), GramFactors(0.95), PowerIteration(1, True, None), **BASES),
    ),
    kl_soap: value(
        "kl_soap",
        SIDEWAYS,
        RotatedAdam(
            (0.95, 0.9),
            KLFactors(0.9, 0.1, 4000.0),
            PowerIteration(1, False, None),
            **(BASES | {"every": 1, "bias_correction": False}),
        ),
    ),
}


@pytest.mark.parametrize("make", RULES, ids=lambda make: make.__name__)
def test_rules_are_these(make):
    assert make() == RULES[make]


def test_freon_takes_two_thirds_at_the_size_of_a_polar_factor():
    rule = freon()
    assert (rule.momentum, rule.scale) == (AHEAD, Original())
    assert rule.map.power == RationalPower(6, 4, lower=1e-3)
    assert rule.map.size == polarlight.rules.PolarSize()


def test_both_sides_come_before_the_rows():
    both = EquilibrateBoth(1e-4)
    assert polarlight.rules.rows_after(7) == PhaseSwitch(both, ROWS, steps=6)


CLASSES = {
    polarlight.Muon: (0.02, polarlight.rules.muon),
    polarlight.NorMuon: (0.02, polarlight.rules.normuon),
    polarlight.UNorMuon: (0.02, unormuon),
    polarlight.Aurora: (0.02, polarlight.rules.aurora),
    polarlight.MuonEq: (2e-3, polarlight.rules.muoneq),
    Kaon: (0.02, kaon),
    Freon: (0.02, freon),
    PolarGrad: (0.02, polargrad),
    PolarAdamW: (0.02, polar_adamw),
    SOAP: (3e-3, soap),
    KLSOAP: (3e-3, kl_soap),
}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_classes_are_their_rules_at_these_rates_and_adamw_at_those(cls):
    lr, make = CLASSES[cls]
    groups = cls(net()).param_groups
    hidden = [group for group in groups if isinstance(group["rule"], UpdateRule)]
    others = [group for group in groups if isinstance(group["rule"], AdamWRule)]
    assert len(hidden) + len(others) == len(groups)
    for group in hidden:
        numbers = [group[key] for key in ("lr", "weight_decay", "momentum", "maximize")]
        assert numbers == [lr, 0.0, 0.95, False]
        assert group["rule"] == make()
    for group in others:
        numbers = [group[key] for key in ("lr", "weight_decay", "momentum", "maximize")]
        assert numbers == [2e-3 if cls is polarlight.MuonEq else 3e-3, 0.0, 0.9, False]
        assert group["rule"] == AdamWRule(beta2=0.95)
    assert hidden
    assert others


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_classes_hand_adamws_numbers_and_the_direction_on(cls):
    asked = {"aux_lr": 0.5, "aux_betas": (0.6, 0.7), "aux_weight_decay": 0.25}
    groups = cls(net(), maximize=True, **asked).param_groups
    others = [group for group in groups if isinstance(group["rule"], AdamWRule)]
    for group in others:
        assert (group["lr"], group["momentum"], group["rule"].beta2) == (0.5, 0.6, 0.7)
    decays = {group["role"]: group["weight_decay"] for group in others}
    assert decays.pop("vector") == 0.0
    assert set(decays.values()) == {0.25}
    assert all(group["maximize"] for group in groups)


RMS = polarlight.stages.MatchRmsAdamW()


def numbers_of_the_rest(optimizer):
    others = [g for g in optimizer.param_groups if isinstance(g["rule"], AdamWRule)]
    rates = {float(group["lr"]) for group in others}
    decays = {group["role"]: group["weight_decay"] for group in others}
    assert decays.pop("vector") == 0.0
    return rates, set(decays.values())


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_adamw_takes_the_numbers_of_the_matrices_where_updates_are_of_its_size(cls):
    found = numbers_of_the_rest(cls(net(), lr=2e-5, weight_decay=0.1, scale=RMS))
    assert found == ({2e-5}, {0.1})
    given = cls(net(), lr=2e-5, weight_decay=0.1, scale=RMS, aux_lr=1e-4, aux_weight_decay=0.0)
    assert numbers_of_the_rest(given) == ({1e-4}, {0.0})
    other = cls(net(), lr=2e-5, weight_decay=0.1, scale=polarlight.stages.Original())
    assert numbers_of_the_rest(other) == ({3e-3}, {0.0})


def test_a_tensor_rate_is_not_shared_with_adamw():
    rate = torch.tensor(1e-3)
    groups = polarlight.Muon(net(), lr=rate, scale=RMS).param_groups
    (other,) = {id(g["lr"]) for g in groups if g["role"] == "head"}
    assert other != id(rate)
