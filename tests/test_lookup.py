"""Objects where arguments take objects: text, classes and None are refused with legal ones."""

import importlib
import re

import pytest
from torch import nn

import polarlight as pl
from polarlight import rules
from polarlight.lookup import LEGAL
from tests.nets import parameter

MUONS = [pl.Muon, pl.NorMuon, pl.UNorMuon, pl.MuonEq, pl.PolarAdamW, pl.PolarGrad]
SCALED = [*MUONS, pl.Aurora, pl.Freon, pl.Kaon, pl.SOAP, pl.KLSOAP]
CASES = [
    *((cls, {"polar": "jordan"}, "polar") for cls in MUONS),
    *((cls, {"scale": "match_rms_adamw"}, "scale") for cls in SCALED),
    *((cls, {"scale": pl.stages.Original}, "scale") for cls in SCALED),
    *((cls, {"scale": None}, "scale") for cls in SCALED),
    (pl.Muon, {"scale": 0.2}, "scale"),
    (pl.Muon, {"polar": pl.linalg.AutoPolar}, "polar"),
    (pl.Muon, {"polar": None}, "polar"),
    (pl.Aurora, {"side": "tall"}, "side"),
    (pl.Aurora, {"solver": "release"}, "solver"),
    (pl.Aurora, {"solver": pl.rules.BalancedPolar}, "solver"),
    (pl.MuonEq, {"balance": "rows"}, "balance"),
    (pl.Freon, {"power": "2/3"}, "power"),
    (pl.Freon, {"size": "mean"}, "size"),
]


@pytest.mark.parametrize(("cls", "given", "name"), CASES, ids=str)
def test_an_argument_that_takes_an_object_is_refused_at_construction(cls, given, name):
    with pytest.raises(
        ValueError, match=f"^{name} takes an object, got .*{re.escape(LEGAL[name])}"
    ):
        cls([parameter(4, 4)], **given)


SOLVERS = (rules.WarmPolar, rules.BalancedPolar, rules.FeedbackPolar, rules.RiemannianPolar)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_polar_method_inside_a_solver_is_checked_too(solver):
    with pytest.raises(ValueError, match=r"^polar takes an object, got 'jordan'"):
        pl.Aurora([parameter(4, 4)], solver=solver("jordan"))


@pytest.mark.parametrize(
    "engine", [pl.linalg.NewtonSchulz, pl.linalg.GramNewtonSchulz, pl.linalg.AutoPolar], ids=str
)
def test_a_schedule_is_an_object(engine):
    with pytest.raises(ValueError, match=r"^schedule takes an object, got 'jordan'.*JORDAN"):
        engine("jordan")


@pytest.mark.parametrize("name", LEGAL)
def test_every_legal_object_exists_under_its_stated_name(name):
    namespace, _, objects = LEGAL[name].partition(": ")
    for text in re.split(r", (?=[A-Za-z])| or ", objects):
        assert eval(text, vars(importlib.import_module(namespace)).copy()) is not None


def test_a_view_is_an_object():
    with pytest.raises(ValueError, match=r"^view takes an object, got 'whole'"):
        pl.SpectralOptimizer([parameter(4, 4)], rule=pl.rules.muon(), view="whole")


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))


TAKES_AN_OPTIMIZER = {
    "explain": pl.explain,
    "clip_grad_norm_": lambda wrong: pl.clip_grad_norm_(wrong, 1.0),
    "with_stochastic_rounding": pl.optimizer.with_stochastic_rounding,
    "carry_over": lambda wrong: pl.migration.carry_over([wrong], pl.Muon(net())),
    "load_carried": lambda wrong: pl.migration.load_carried(wrong, {}),
    "GroupSchedule": lambda wrong: pl.scheduling.GroupSchedule(wrong, pl.scheduling.Cooldown(10)),
}


@pytest.mark.parametrize("function", TAKES_AN_OPTIMIZER)
@pytest.mark.parametrize("wrong", [net(), pl.Muon], ids=["model", "class"])
def test_a_model_or_class_in_place_of_the_optimizer_is_refused(function, wrong):
    given = "a Sequential" if isinstance(wrong, nn.Module) else "the class Muon"
    said = rf"^{function} takes an optimizer, which has \.param_groups, got {given}; give the opt"
    with pytest.raises(TypeError, match=said):
        TAKES_AN_OPTIMIZER[function](wrong)


def test_parameters_in_place_of_the_optimizer_are_refused():
    with pytest.raises(TypeError, match=r"clip_grad_norm_ .* got a generator; give the optimizer"):
        pl.clip_grad_norm_(net().parameters(), 1.0)
    with pytest.raises(TypeError, match=r"got a generator; give optimizer\.param_groups"):
        pl.explain(net().parameters())


TAKES_GROUPS = {
    "layerwise_lr_decay": lambda wrong: pl.routing.layerwise_lr_decay(wrong, 0.9),
    "with_head_rate": lambda wrong: pl.recipes.with_head_rate(wrong, 0.5),
}


@pytest.mark.parametrize("function", TAKES_GROUPS)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (pl.Muon(net()), "got a Muon; give .param_groups of it"),
        (net(), "got a Sequential; give optimizer.param_groups"),
        (net().parameters(), "got a generator; give optimizer.param_groups"),
        (pl.Muon(net()).state_dict(), "got a dict; give optimizer.param_groups"),
        (None, "got None; give optimizer.param_groups"),
    ],
    ids=["optimizer", "model", "parameters", "state dict", "None"],
)
def test_other_objects_than_param_groups_are_refused(function, wrong, said):
    with pytest.raises(TypeError, match=rf"^{function} takes param groups.*{re.escape(said)}"):
        TAKES_GROUPS[function](wrong)
