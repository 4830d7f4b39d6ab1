"""Arguments: the classes hand theirs to their rules, and bad ones are refused with their value."""

import inspect
import re

import pytest

import polarlight
from polarlight.linalg.nuclear import NuclearPolar
from polarlight.linalg.spectral_power import ExactPower
from polarlight.rules import (
    BalancedPolar,
    ExactBalanced,
    FeedbackPolar,
    LoraProduct,
    RiemannianPolar,
    RowRms,
    freon,
)
from polarlight.stages.adam import AdamDirection
from polarlight.stages.averaged_polar import AveragedPolar
from polarlight.stages.eigenbasis import PowerIteration
from polarlight.stages.factors import GramFactors, KLFactors
from polarlight.stages.renormalise import MatchRms, PolarNorm
from polarlight.stages.rotated_adam import RotatedAdam
from polarlight.stages.second_moment import RowSecondMoment
from polarlight.stages.shampoo import Shampoo
from tests.matrices import TALL, gaussian
from tests.rules.trajectory import EXACT

NAN = float("nan")


def is_optimizer(cls):
    """One of the public classes that step parameters, the general one aside."""
    return issubclass(cls, polarlight.SpectralOptimizer) and cls is not polarlight.SpectralOptimizer


BAD = [
    (BalancedPolar, {"rounds": 0}),
    (BalancedPolar, {"floor": 1.0}),
    (BalancedPolar, {"exponent": 0.0}),
    (BalancedPolar, {"exponent": 1.5}),
    (BalancedPolar, {"exponent": NAN}),
    (FeedbackPolar, {"rounds": -1}),
    (FeedbackPolar, {"damping": -0.5}),
    (FeedbackPolar, {"damping": 1.0}),
    (ExactBalanced, {"steps": 0}),
    (ExactBalanced, {"cg_steps": -1}),
    (ExactBalanced, {"floor": 1.0}),
    (RiemannianPolar, {"steps": 0}),
    (RiemannianPolar, {"cg_steps": 0}),
    (RiemannianPolar, {"step_size": 0.0}),
    (RiemannianPolar, {"step_size": NAN}),
    (polarlight.rules.WarmPolar, {"exponent": 2.0}),
    (polarlight.rules.WarmPolar, {"follow": 1.1}),
    (polarlight.rules.WarmPolar, {"reach": 1.0}),
    (RowSecondMoment, {"beta2": 1.0}),
    (MatchRms, {"rms": 0.0}),
    (polarlight.rules.AdamWRule, {"beta2": 1.0}),
    (polarlight.rules.AdamWRule, {"eps": -1e-8}),
    (polarlight.stages.MatchRmsAdamW, {"rms": -0.2}),
    (polarlight.rules.normuon, {"beta2": -0.1}),
    (polarlight.rules.normuon_paper, {"rms": NAN}),
    (polarlight.rules.normuon_paper, {"beta2": 1.0}),
    (polarlight.rules.unormuon, {"beta2": 1.5}),
    (polarlight.rules.rows_after, {"phase": -1}),
    (FeedbackPolar, {"rounds": 0}),
    (FeedbackPolar, {"floor": 0.0}),
    (ExactBalanced, {"cg_steps": 0}),
    (RiemannianPolar, {"floor": 0.0}),
    (RiemannianPolar, {"step_size": -0.1}),
    (polarlight.rules.WarmPolar, {"floor": 1.0}),
    (polarlight.rules.WarmPolar, {"follow": -0.1}),
    (polarlight.rules.WarmPolar, {"exponent": 0.0}),
    (polarlight.rules.AdamWRule, {"beta2": -0.1}),
    (polarlight.rules.AdamWRule, {"eps": NAN}),
    (NuclearPolar, {"power": -0.1}),
    (NuclearPolar, {"power": 1.1}),
    (AveragedPolar, {"beta": 1.0}),
    (LoraProduct, {"damping": 0.0}),
    (RowRms, {"rms": 0.0}),
    (PolarNorm, {"most": 0.0}),
    (AdamDirection, {"betas": (0.9, 1.0)}),
    (AdamDirection, {"eps": -1e-8}),
    (PowerIteration, {"rounds": 0}),
    (PowerIteration, {"floor": 1.0}),
    (GramFactors, {"beta": 1.0}),
    (KLFactors, {"initial": 0.0}),
    (KLFactors, {"most": 9.9}),
    (Shampoo, {"exponent": 0.1}),
    (Shampoo, {"exponent": -1.1}),
    (Shampoo, {"floor": 1.0}),
    (RotatedAdam, {"every": 0}),
    (RotatedAdam, {"max_side": -1}),
]


@pytest.mark.parametrize(("make", "bad"), BAD)
def test_a_bad_argument_is_refused_with_its_value(make, bad):
    (value,) = bad.values()
    with pytest.raises(ValueError, match=rf"got .*{re.escape(str(value))}"):
        make(**bad)


ENDS = [
    (BalancedPolar, {"rounds": 1}),
    (BalancedPolar, {"exponent": 1.0}),
    (BalancedPolar, {"exponent": None}),
    (FeedbackPolar, {"rounds": 1}),
    (FeedbackPolar, {"damping": 0.0}),
    (ExactBalanced, {"steps": 1}),
    (ExactBalanced, {"cg_steps": 1}),
    (RiemannianPolar, {"steps": 1}),
    (RiemannianPolar, {"cg_steps": 1}),
    (RiemannianPolar, {"step_size": 1e-300}),
    (polarlight.rules.WarmPolar, {"follow": 0.0}),
    (polarlight.rules.WarmPolar, {"follow": 1.0}),
    (polarlight.rules.WarmPolar, {"reach": 1 + 2**-52}),
    (RowSecondMoment, {"beta2": 0.0}),
    (MatchRms, {"rms": 1e-300}),
    (polarlight.rules.AdamWRule, {"beta2": 0.0}),
    (polarlight.rules.AdamWRule, {"eps": 0.0}),
    (polarlight.stages.MatchRmsAdamW, {"rms": 1e-300}),
    (NuclearPolar, {"power": 0.0}),
    (NuclearPolar, {"power": 1.0}),
    (AveragedPolar, {"beta": 0.0}),
    (LoraProduct, {"damping": 1e-300}),
    (RowRms, {"rms": 1e-300}),
    (PolarNorm, {"most": 1e-300}),
    (AdamDirection, {"betas": (0.0, 0.0)}),
    (AdamDirection, {"eps": 0.0}),
    (PowerIteration, {"rounds": 1}),
    (PowerIteration, {"floor": 0.0}),
    (GramFactors, {"beta": 0.0}),
    (KLFactors, {"initial": 1e-300}),
    (KLFactors, {"most": 10.0}),
    (Shampoo, {"exponent": 0.0}),
    (Shampoo, {"exponent": -1.0}),
    (Shampoo, {"floor": 0.0}),
    (RotatedAdam, {"every": 1}),
    (RotatedAdam, {"max_side": 0}),
]


@pytest.mark.parametrize(("make", "good"), ENDS)
def test_the_end_of_a_range_is_taken(make, good):
    ((name, value),) = good.items()
    assert getattr(make(**good), name) == value


SIZES = pytest.mark.parametrize("size", [polarlight.rules.SumNorm(), polarlight.rules.MeanNorm()])


@SIZES
def test_a_schatten_norm_needs_a_power_above_minus_one(size):
    assert freon(ExactPower(-0.999), size=size).map.power.exponent == -0.999
    with pytest.raises(ValueError, match=r"needs p > -1, got p = -1"):
        freon(ExactPower(-1.0), size=size)
    assert freon(ExactPower(-1.0), size=polarlight.rules.OwnSize()).name == "freon"


SCALE, COLUMNS = polarlight.stages.Unscaled(), polarlight.stages.EquilibrateColumns()

CLASSES = [
    (polarlight.Muon, {}, polarlight.rules.muon()),
    (
        polarlight.Muon,
        {"nesterov": False, "polar": EXACT, "scale": SCALE},
        polarlight.rules.muon(nesterov=False, polar=EXACT, scale=SCALE),
    ),
    (polarlight.NorMuon, {}, polarlight.rules.normuon()),
    (
        polarlight.NorMuon,
        {"nesterov": False, "polar": EXACT, "scale": SCALE, "beta2": 0.5},
        polarlight.rules.normuon(nesterov=False, polar=EXACT, scale=SCALE, beta2=0.5),
    ),
    (polarlight.UNorMuon, {}, polarlight.rules.unormuon()),
    (
        polarlight.UNorMuon,
        {"nesterov": False, "polar": EXACT, "scale": SCALE, "beta2": 0.5},
        polarlight.rules.unormuon(nesterov=False, polar=EXACT, scale=SCALE, beta2=0.5),
    ),
    (polarlight.MuonEq, {}, polarlight.rules.muoneq()),
    (
        polarlight.MuonEq,
        {"nesterov": False, "polar": EXACT, "scale": SCALE, "balance": COLUMNS},
        polarlight.rules.muoneq(COLUMNS, nesterov=False, polar=EXACT, scale=SCALE),
    ),
    (polarlight.Aurora, {}, polarlight.rules.aurora()),
    (
        polarlight.Aurora,
        {
            "nesterov": False,
            "solver": FeedbackPolar(),
            "scale": SCALE,
            "side": polarlight.stages.Side.WIDE,
        },
        polarlight.rules.aurora(
            FeedbackPolar(), nesterov=False, scale=SCALE, side=polarlight.stages.Side.WIDE
        ),
    ),
]


@pytest.mark.parametrize(("cls", "arguments", "rule"), CLASSES)
def test_a_class_is_its_rule_with_the_arguments_given(cls, arguments, rule):
    W = gaussian(*TALL).requires_grad_()
    (group,) = cls([W], 0.3, 0.2, 0.1, maximize=True, **arguments).param_groups
    assert group["rule"] == rule
    numbers = [group[key] for key in ("lr", "weight_decay", "momentum", "maximize")]
    assert numbers == [0.3, 0.2, 0.1, True]


@pytest.mark.parametrize("cls", dict.fromkeys(cls for cls, _, _ in CLASSES))
@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"weight_decay": -0.1}, {"momentum": 1.0}])
def test_a_class_refuses_bad_numbers_with_their_value(cls, bad):
    (value,) = bad.values()
    with pytest.raises(ValueError, match=re.escape(f"got {value}")):
        cls([gaussian(*TALL).requires_grad_()], **bad)


CLASSES = sorted(
    (x for x in vars(polarlight).values() if isinstance(x, type) and is_optimizer(x)),
    key=lambda x: x.__name__,
)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda x: x.__name__)
def test_nothing_decays_unless_it_is_asked_to_and_rates_are_small(cls):
    arguments = inspect.signature(cls).parameters
    if "weight_decay" in arguments:
        assert arguments["weight_decay"].default == 0.0
    for name in ("aux_weight_decay", "aux_lr"):  # derived: tests/rules/test_defaults.py
        if name in arguments:
            assert arguments[name].default is None
    if arguments["lr"].default is not inspect.Parameter.empty:
        assert 0 < arguments["lr"].default <= 0.02
