"""DynMuon: the float64 reference, the oracle, the power by step."""

from functools import partial

import pytest
import torch

from polarlight.rules import dyn_muon, muon
from polarlight.stages.ramp import Logistic
from tests.matrices import SHAPES, skewed
from tests.oracle import SIX_DIGITS, A, numbers, updates
from tests.reference import dyn_muon as reference
from tests.rules.trajectory import EXACT, ROUNDING, distance


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape):
    assert distance(dyn_muon(polar=EXACT), reference.step, shape) < ROUNDING
    fast = {"middle": 3, "width": 2}
    rule = dyn_muon(polar=EXACT, power=Logistic(0.25, -0.25, **fast), unit=0.7)
    assert distance(rule, partial(reference.step, unit=0.7, **fast), shape) < ROUNDING


def test_updates_follow_the_oracle():
    # The oracle maps A itself; the first momentum is 1.95 A, which only its norm sees.
    expected = numbers([0.694007, -0.030398, 0.266800], [0.206004, 0.503202, -0.518401])
    rule = dyn_muon(polar=EXACT, power=-0.25, unit=1.95)
    torch.testing.assert_close(updates(rule, A)[0], expected, **SIX_DIGITS)


@pytest.mark.parametrize(("step", "power"), [(0, 0.1155), (128, 0.0), (640, -0.241)])
def test_the_power_by_step_is_the_published_one(step, power):
    curve = Logistic(0.25, -0.25, middle=128, width=128)
    assert curve(step) == pytest.approx(power, abs=5e-4)
    assert curve.on_device(torch.tensor(float(step))).item() == pytest.approx(curve(step))


def test_power_zero_is_muon():
    M = skewed(12, 6)
    torch.testing.assert_close(
        dyn_muon(power=0.0, polar=EXACT).direction(M, {}), muon(polar=EXACT).direction(M, {})
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: dyn_muon(unit=0.0), "unit must be > 0, got 0"),
        (lambda: Logistic(1, 0, 5, 0), "width must be > 0, got 0"),
    ],
)
def test_invalid_arguments_raise_with_their_value(make, said):
    with pytest.raises(ValueError, match=said):
        make()
