"""Ranges of arguments: their ends, what lies beyond, and that the message has value and range."""

import re

import pytest
import torch

from polarlight.linalg.coefficients import JORDAN, Schedule
from polarlight.linalg.eigen import EigenPolar
from polarlight.linalg.gram import GramNewtonSchulz
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.qdwh import QDWH
from polarlight.linalg.rates import Rates
from polarlight.linalg.regularised import RegularisedPolar
from polarlight.linalg.rows import check_exponent, check_floor
from polarlight.linalg.spectral_power import ExactPower, RationalPower
from polarlight.linalg.svd import ExactPolar
from polarlight.linalg.zolopd import ZoloPD

TINY, BELOW_ONE = 5e-324, 1 - 2**-53


def schedule(**arguments):
    return Schedule(name="one", source="here", **({"steps": ((1.0, 0.0, 0.0),)} | arguments))


def exact_power(exponent=0.0, **arguments):
    return ExactPower(exponent, **arguments)


def rational_power(b=4, a=2, **arguments):
    return RationalPower(b, a, **arguments)


def express(**arguments):
    assert polar_express(**arguments).slope > 1


def gram(**arguments):
    return GramNewtonSchulz(JORDAN, **arguments)


ENDS = [
    (exact_power, {"exponent": -1}),
    (exact_power, {"exponent": 1}),
    (exact_power, {"floor": 0.0}),
    (exact_power, {"floor": BELOW_ONE}),
    (rational_power, {"b": 2, "a": 0}),
    (rational_power, {"a": 4}),
    (rational_power, {"lower": BELOW_ONE}),
    (rational_power, {"lower": 1e-100}),
    (ExactPolar, {"cutoff": 0.0}),
    (ExactPolar, {"cutoff": BELOW_ONE}),
    (EigenPolar, {"cutoff": TINY}),
    (EigenPolar, {"cutoff": BELOW_ONE}),
    (RegularisedPolar, {"delta": TINY}),
    (QDWH, {"steps": 1}),
    (QDWH, {"lower": 1e-20}),
    (QDWH, {"lower": BELOW_ONE}),
    (ZoloPD, {"terms": 1}),
    (ZoloPD, {"terms": 8}),
    (ZoloPD, {"lower": 1e-20}),
    (ZoloPD, {"lower": BELOW_ONE}),
    (Rates, {"discount": 1.0}),
    (Rates, {"discount": TINY}),
    (express, {"steps": 1}),
    (express, {"lower": BELOW_ONE}),
    (express, {"safety": 1.0}),
    (express, {"cushion": 0.0}),
    (express, {"cushion": BELOW_ONE}),
    (express, {"degree": 3}),
    (schedule, {"safety": 1.0}),
    (gram, {"restarts": (1,)}),
    (gram, {"restarts": (4,)}),
    (gram, {"restarts": (1, 2, 3, 4)}),
    (check_floor, {"floor": TINY}),
    (check_floor, {"floor": BELOW_ONE}),
    (check_exponent, {"exponent": 1.0}),
    (check_exponent, {"exponent": TINY}),
    (check_exponent, {"exponent": None}),
]


@pytest.mark.parametrize(("make", "arguments"), ENDS)
def test_the_ends_of_a_range_are_taken(make, arguments):
    made = make(**arguments)
    assert arguments == {name: getattr(made, name, value) for name, value in arguments.items()}


BEYOND = [
    (exact_power, {"exponent": -1.01}, "exponent must lie in [-1, 1], got -1.01"),
    (exact_power, {"floor": -0.1}, "floor must lie in [0, 1), got -0.1"),
    (rational_power, {"b": 0, "a": 0}, "b must be even and at least 2, got 0"),
    (rational_power, {"a": -1}, "a must lie in [0, b], got a=-1, b=4"),
    (rational_power, {"a": 5}, "a must lie in [0, b], got a=5, b=4"),
    (rational_power, {"lower": 1.0}, "lower must lie in (0, 1), got 1.0"),
    (ExactPolar, {"cutoff": -0.1}, "cutoff must lie in [0, 1), got -0.1"),
    (ExactPolar, {"cutoff": 1.0}, "cutoff must lie in [0, 1), got 1.0"),
    (EigenPolar, {"cutoff": 0.0}, "cutoff must lie in (0, 1), got 0.0"),
    (QDWH, {"lower": 9e-21}, "lower must lie in [1e-20, 1), got 9e-21"),
    (ZoloPD, {"lower": 9e-21}, "lower must lie in [1e-20, 1), got 9e-21"),
    (ZoloPD, {"lower": 1.0}, "lower must lie in [1e-20, 1), got 1.0"),
    (express, {"cushion": -0.1}, "cushion must lie in [0, 1), got -0.1"),
    (express, {"degree": 4}, "degree must be 3 or 5, got 4"),
    (schedule, {"safety": BELOW_ONE}, f"safety must be >= 1, got {BELOW_ONE}"),
    (schedule, {"steps": ()}, "schedule 'one' needs at least one step (a, b, c), got none"),
    (gram, {"restarts": (5,)}, "restarts must increase within 1 .. 4, got (5,)"),
    (check_exponent, {"exponent": 0.0}, "exponent must lie in (0, 1] or be None, got 0.0"),
    (check_exponent, {"exponent": 1.01}, "exponent must lie in (0, 1] or be None, got 1.01"),
]


@pytest.mark.parametrize(("make", "arguments", "said"), BEYOND)
def test_values_out_of_range_raise_with_value_and_range(make, arguments, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        make(**arguments)


@pytest.mark.parametrize(
    "make", [ExactPolar, EigenPolar, RegularisedPolar, exact_power, rational_power, QDWH, ZoloPD]
)
def test_decompositions_exist_in_two_dtypes(make):
    for dtype in (torch.float32, torch.float64):
        assert make(dtype=dtype).dtype == dtype
    for dtype in (torch.float16, torch.bfloat16, torch.complex64, torch.int64):
        with pytest.raises(ValueError, match=f"must be float32, float64 or None, got {dtype}"):
            make(dtype=dtype)
