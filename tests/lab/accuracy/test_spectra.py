"""Accuracy of engines: what the measurement says of engines whose error is known."""

from dataclasses import dataclass

import pytest
import torch

import polarlight
from polarlight.lab.accuracy.spectra import SPECTRA, Case, Sample, measure


@dataclass(frozen=True)
class Scaled:
    """The exact factor times a known number."""

    factor: float

    def __call__(self, M):
        return self.factor * polarlight.linalg.ExactPolar()(M)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(24, 6), (6, 24), (8, 8)])
def test_cases_have_the_spectrum_they_are_named_for(spectrum, shape):
    case = Case(spectrum, shape)
    sigma = torch.linalg.svdvals(case.matrix())
    torch.testing.assert_close(sigma, SPECTRA[spectrum](min(shape)), rtol=1e-6, atol=1e-14)
    assert case.rank == int((sigma > 1e-12).sum())


def test_a_scaled_factor_is_measured_as_such():
    found = measure(Scaled(1.5), Sample.of(Case("power law", (24, 6)).matrix(), rank=6))
    assert found["bands"]["0.1"] == pytest.approx([1.5, 1.5])
    assert found["bands"]["1e-05"] == pytest.approx([1.5, 1.5])
    assert found["orthogonality"] == pytest.approx(1.25)
    assert found["error"] == pytest.approx(0.5)
    assert found["direction"] == pytest.approx(0, abs=1e-12)
    assert found["flops"] == 8 * 24 * 6**2 + 20 * 6**3


def test_a_band_without_singular_values_is_null():
    found = measure(Scaled(1.0), Sample.of(Case("flat", (150, 120)).matrix(), rank=120))
    assert found["bands"]["0.1"] is None  # all of them lie at 1 / sqrt(120) of the norm
    assert found["bands"]["0.01"] == pytest.approx([1, 1])


def test_null_directions_must_stay_zero():
    M = Case("half rank", (24, 6)).matrix()
    assert measure(Scaled(1.0), Sample.of(M, rank=3))["error"] == pytest.approx(0, abs=1e-12)
    noise = M + 1e-6 * torch.randn(24, 6, dtype=torch.float64)
    assert measure(Scaled(1.0), Sample.of(noise, rank=3))["error"] == pytest.approx(1, rel=1e-3)
