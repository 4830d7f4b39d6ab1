"""Default arguments of maps, on which documents and checkpoints rely."""

import dataclasses
import importlib
import pkgutil

import pytest
import torch

import polarlight.linalg
from polarlight.linalg import products, quack
from polarlight.linalg.auto import QUICK, AutoPolar
from polarlight.linalg.chaotic import KAON, MAXIMAL_SLOPE, Chaotic
from polarlight.linalg.coefficients import (
    CUBIC,
    DEEPSEEK_V4,
    JORDAN,
    PADE_QUINTIC,
    SIMPLE_QUINTIC,
    Schedule,
)
from polarlight.linalg.eigen import EigenPolar
from polarlight.linalg.gram import GramNewtonSchulz, condition_limit, growth_limit
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import FROBENIUS
from polarlight.linalg.one_sided import GramSide, OneSidedPolar
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.rates import Rates, assumed_rates
from polarlight.linalg.regularised import RegularisedPolar
from polarlight.linalg.spectral_power import ExactPower, RationalPower
from polarlight.linalg.svd import ExactPolar
from tests.matrices import gaussian

SAME = [
    (RegularisedPolar(), RegularisedPolar(1e-3)),
    (RationalPower(6, 4), RationalPower(6, 4, lower=1e-3)),
    (
        GramNewtonSchulz(),
        GramNewtonSchulz(polar_express(5, safety=1.02), normalisation=FROBENIUS, restarts=None),
    ),
    (NewtonSchulz(), NewtonSchulz(polar_express(5), normalisation=FROBENIUS)),
    (AutoPolar(), AutoPolar(polar_express(4, lower=8e-3, safety=1.02))),
    (Chaotic(), Chaotic(KAON)),
    (OneSidedPolar(), OneSidedPolar(GramSide.RIGHT)),
    (Rates(), Rates(discount=1.0, symmetric_from=512, gram_from=64)),
    (assumed_rates("cpu"), Rates(discount=0.72, symmetric_from=512, gram_from=64)),
    (assumed_rates("cuda"), Rates(discount=1.0, symmetric_from=512, gram_from=257)),
    (
        polar_express(),
        polar_express(
            5, lower=1e-3, safety=1.01, cushion=0.02407327424182761, degree=5, anticipate=False
        ),
    ),
]


@pytest.mark.parametrize(("default", "spelt_out"), SAME, ids=lambda x: str(x)[:30])
def test_defaults_are_these(default, spelt_out):
    assert default == spelt_out


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (JORDAN, 5),
        (SIMPLE_QUINTIC, 12),
        (CUBIC, 15),
        (PADE_QUINTIC, 12),
        (DEEPSEEK_V4, 10),
        (KAON, 5),
        (MAXIMAL_SLOPE, 5),
        (QUICK, 4),
        (polar_express(), 5),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_schedules_have_the_steps_of_their_names(schedule, steps):
    assert len(schedule.steps) == steps
    assert schedule.slope > 1
    assert schedule.name.endswith((f"x{steps}", "8+2", "from 0.008, safety 1.02"))


def test_schedules_have_the_stated_safety_factors():
    assert Schedule(name="plain", steps=((1.0, 0.0, 0.0),), source="here").safety == 1
    assert polar_express().safety == 1.01
    assert KAON.safety == MAXIMAL_SLOPE.safety == 1.021


def test_a_schedule_is_what_it_computes_not_where_it_was_published():
    one = Schedule(name="s", steps=((2.0, 0.0, 0.0),), source="one paper")
    assert one == Schedule(name="s", steps=((2.0, 0.0, 0.0),), source="another")
    assert one != Schedule(name="s", steps=((3.0, 0.0, 0.0),), source="one paper")
    assert one != Schedule(name="s", steps=((2.0, 0.0, 0.0),), safety=2.0, source="one paper")
    other = Schedule(name="s", steps=((3.0, 0.0, 0.0),), source="one paper")
    assert repr(one).startswith("Schedule('s', ")
    assert repr(one) != repr(other)
    with pytest.raises(TypeError, match="positional"):
        Schedule("s", ((2.0, 0.0, 0.0),))


def test_limits_are_those_of_the_documentation():
    assert condition_limit(torch.float32) == 200
    assert growth_limit(torch.float32) == 512 * 2.0**-23
    assert (products.PANEL, products.PANELS_FROM, products.PANELS_FROM_IN_HALF) == (256, 512, 768)
    assert (quack.LEAST, quack.LEAST_FLOPS) == (1024, 2e11)
    assert products._in_panels(torch.empty(512, 1))
    assert not products._in_panels(torch.empty(511, 1))


@pytest.mark.parametrize(("side", "panels"), [(511, 0), (512, 1)])
def test_symmetric_products_are_mirrored_from_their_side_on(monkeypatch, side, panels):
    calls, mirrored = [], products._mirrored
    monkeypatch.setattr(products, "_mirrored", lambda *x: calls.append(1) or mirrored(*x))
    R = torch.ones(side, side)
    assert torch.equal(products.gram(R), side * R)
    assert len(calls) == panels
    assert torch.equal(products.symmetric_multiply_add(R, R, R, 1.0), (side + 1) * R)
    assert len(calls) == 2 * panels


def test_a_negative_power_is_linear_below_a_thousandth_and_others_nowhere():
    M = gaussian(12, 5)
    for p in (-0.5, -1.0):
        assert torch.equal(ExactPower(p)(M), ExactPower(p, floor=1e-3)(M))
    D = torch.diag(torch.tensor([1.0, 1e-5], dtype=torch.float64))
    for p in (0.0, 0.5):
        assert torch.equal(ExactPower(p)(D), ExactPower(p, floor=0.0)(D))
        assert not torch.equal(ExactPower(p)(D), ExactPower(p, floor=1e-3)(D))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(40, 3), (3, 40), (9, 9)])
def test_the_exact_factor_cuts_off_at_the_root_of_the_longer_side_in_epsilons(dtype, shape):
    cutoff = max(shape) ** 0.5 * torch.finfo(dtype).eps
    for factor, kept in ((0.7, 0.0), (1.5, 1.0)):
        D = torch.zeros(shape, dtype=dtype)
        D[0, 0], D[1, 1] = 1.0, factor * cutoff
        assert ExactPolar()(D)[1, 1].item() == pytest.approx(kept, abs=1e-6)


@pytest.mark.parametrize("engine", [ExactPolar(0.5), EigenPolar(0.5)], ids=str)
def test_singular_values_up_to_the_cut_off_count_as_zero(engine):
    D = torch.diag(torch.tensor([1.0, 0.5, 0.75], dtype=torch.float64))
    expected = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(engine(D).diagonal(), expected)


def test_every_map_is_a_value():
    """Frozen, so that rules can be compared, hashed, shared and kept as defaults."""
    found = []
    for module in pkgutil.iter_modules(polarlight.linalg.__path__, "polarlight.linalg."):
        for cls in vars(importlib.import_module(module.name)).values():
            if isinstance(cls, type) and cls.__module__ == module.name:
                found += [cls] if dataclasses.is_dataclass(cls) else []
    assert len(found) > 15
    assert all(cls.__dataclass_params__.frozen for cls in found)
