"""SOAP-Muon: the float64 reference, the oracles, the trust gate."""

from functools import partial

import pytest
import torch

from polarlight.linalg import Frobenius
from polarlight.rules import muon, soap_muon
from polarlight.stages.ramp import Ramp
from polarlight.stages.soap_balance import SoapBalance, TrustGate
from tests.matrices import SHAPES, SQUARE, gaussian
from tests.oracle import SIX_DIGITS, A, B, numbers, updates
from tests.reference import soap_muon as reference
from tests.rules.rotated import distance
from tests.rules.trajectory import EXACT

NEARLY = (12, 10)
"""Two gradients fill the longer side, so that refreshing in every step is well-defined."""

FIFTY_STEPS = 1e-10
"""Of fifty steps. Measured here: 2e-14, refreshing in every step 7e-14; bases amplify rounding."""


def plain(**numbers):
    return soap_muon(floor=0.0, polar=EXACT, **numbers)


@pytest.mark.parametrize("shape", [*SHAPES, NEARLY])
def test_fifty_steps_follow_the_reference(shape):
    assert distance(plain(), reference.step, shape) < FIFTY_STEPS


@pytest.mark.parametrize("shape", [SQUARE, NEARLY])
def test_refreshing_in_every_step_follows_the_reference(shape):
    rule, expected = plain(every=1), partial(reference.step, every=1)
    assert distance(rule, expected, shape) < FIFTY_STEPS


@pytest.mark.parametrize("shape", [SQUARE, NEARLY])
def test_floor_and_gate_follow_the_reference(shape):
    gate = TrustGate(Ramp(0.45, 0.0, 10, 20), Ramp(0.85, 1.0, 30, 31))

    def limits(k):
        return 0.45 * (1 - min(max((k - 10) / 10, 0), 1)), 0.85 if k <= 30 else 1.0

    rule = soap_muon(floor=0.55, gate=gate, polar=EXACT)
    expected = partial(reference.step, floor=0.55, gate=limits)
    assert distance(rule, expected, shape) < FIFTY_STEPS


def test_the_first_step_is_muons():
    torch.testing.assert_close(updates(plain(), A)[0], updates(muon(polar=EXACT), A)[0])


def test_the_oracle_with_a_refresh_in_every_step():
    third = numbers([0.898578, -0.379388, -0.220505], [0.030881, 0.555930, -0.830655])
    torch.testing.assert_close(updates(plain(every=1), A, B, A)[2], third, **SIX_DIGITS)


def momenta(*gradients, mu=0.95):
    """Nesterov momenta."""
    M = torch.zeros_like(A)
    for G in gradients:
        M = mu * M + (1 - mu) * G
        yield (1 - mu) * G + mu * M, G


def balanced(stage, *gradients):
    """Return the stage's output for each momentum, at its size."""
    buffers = {name: A.new_zeros(shape) for name, shape in stage.buffer_shapes(A.shape).items()}
    found = []
    for N, G in momenta(*gradients):
        found.append(stage(N, {**buffers, "gradient": G}) * buffers["unit"])
    return found


def test_the_oracles_before_the_polar_factor():
    _, S2, S3 = balanced(SoapBalance(every=1), A, B, A)
    second = numbers([0.158395, -0.289454, 0.027406], [0.192871, 0.146998, -0.021494])
    third = numbers([0.444278, -0.156344, -0.154207], [0.063430, 0.233017, -0.391393])
    torch.testing.assert_close(S2, second, **SIX_DIGITS)
    torch.testing.assert_close(S3, third, **SIX_DIGITS)
    rarely = balanced(SoapBalance(every=10, norm=Frobenius()), A, B, A)[2]
    third = numbers([0.358263, -0.342713, 0.112036], [0.261450, 0.309383, -0.177665])
    torch.testing.assert_close(rarely, third, **SIX_DIGITS)


def test_the_oracle_of_the_trust_gate():
    S = balanced(SoapBalance(every=1), A, B)[1]
    (_, _), (N, _) = momenta(A, B)
    step = torch.ones(1, 1, 1)
    gate = TrustGate(low=0.0, high=1.0)(S[None], N[None], B[None], step)
    assert gate.item() == pytest.approx(0.757774, abs=1e-6)
    low = TrustGate(low=0.8, high=0.9)(S[None], N[None], B[None], step)
    assert low.item() == pytest.approx(0.8)


def test_a_row_without_any_gradient_stays_at_rest():
    gradients = [gaussian(6, 4, seed=t) for t in range(4)]
    for G in gradients:
        G[2] = 0
    for U in updates(plain(every=1), *gradients):
        assert not U[2].any()


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"beta": 1.0}, r"beta must lie in \[0, 1\), got 1.0"),
        ({"every": 0}, "every must be >= 1, got 0"),
        ({"floor": -1.0}, "floor must be >= 0, got -1.0"),
        ({"blend": 0.0}, r"blend must lie in \(0, 1\], got 0.0"),
    ],
)
def test_invalid_arguments_raise_with_their_value(numbers, said):
    with pytest.raises(ValueError, match=said):
        SoapBalance(**numbers)
