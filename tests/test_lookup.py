"""Objects where arguments take objects: text, classes and None are refused with legal ones."""

import importlib
import re

import pytest

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
