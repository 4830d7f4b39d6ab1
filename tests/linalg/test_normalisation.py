"""Normalisations: upper bounds of the largest singular value, without absolute floors."""

import pytest
import torch

from polarlight.linalg.coefficients import JORDAN, TURBO_MUON
from polarlight.linalg.gram import GramNewtonSchulz
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import AOL, Frobenius, Schatten4, Start, normalised
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.svd import ExactPolar
from tests.linalg.spectra import SPECTRA, known
from tests.matrices import gaussian

NORMALISATIONS = [Frobenius(), Schatten4(), AOL()]
SCALARS = NORMALISATIONS[:2]

all_three = pytest.mark.parametrize("normalisation", NORMALISATIONS, ids=str)
scalars = pytest.mark.parametrize("normalisation", SCALARS, ids=str)
shapes = pytest.mark.parametrize("shape", [(24, 6), (6, 24), (9, 9), (3, 24, 6)], ids=str)


def spectral_norm(X):
    return torch.linalg.matrix_norm(X.double(), 2).max().item()


@all_three
@shapes
@pytest.mark.parametrize("name", SPECTRA)
def test_no_singular_value_exceeds_one(normalisation, shape, name):
    X = normalised(known(name, *shape).M, normalisation, 1.0, torch.float64)
    assert spectral_norm(X) <= 1 + 1e-14


@all_three
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_within_a_safety_of_one_percent(normalisation, dtype):
    """The Gram matrix is rounded to bfloat16 too: the worst of many rank-1 matrices."""
    for seed in range(40):
        u, v = gaussian(30, 1, seed=seed).sign(), gaussian(1, 12, seed=seed + 99).exp()
        assert spectral_norm(normalised(u @ v, normalisation, 1.0, dtype)) < 1.01


@all_three
def test_rank_one_arrives_at_one(normalisation):
    """Schedules must therefore accept inputs slightly above 1."""
    X = normalised(gaussian(9, 1) @ gaussian(1, 5, seed=1), normalisation, 1.0, torch.float64)
    assert spectral_norm(X) == pytest.approx(1)


def test_flat_spectra_profit_from_the_higher_norms():
    M = known("flat", 60, 16).M
    sigmas = [spectral_norm(normalised(M, n, 1.0, torch.float64)) for n in NORMALISATIONS]
    assert sigmas == pytest.approx([16**-0.5, 16**-0.25, 1.0])


@all_three
@shapes
def test_safety_divides_once_more(normalisation, shape):
    M = gaussian(*shape)
    plain = normalised(M, normalisation, 1.0, torch.float64)
    torch.testing.assert_close(normalised(M, normalisation, 1.25, torch.float64), plain / 1.25)


@all_three
@shapes
@pytest.mark.parametrize("factor", [1e-30, 1e25])
def test_scale_does_not_matter(normalisation, shape, factor):
    M = gaussian(*shape, dtype=torch.float32)
    one = normalised(M, normalisation, 1.0, torch.float32)
    torch.testing.assert_close(normalised(M * factor, normalisation, 1.0, torch.float32), one)


@all_three
def test_rows_and_columns_trade_places_with_the_transpose(normalisation):
    M = gaussian(24, 6)
    torch.testing.assert_close(
        normalised(M.mT, normalisation, 1.0, torch.float64).mT,
        normalised(M, normalisation, 1.0, torch.float64),
    )


@scalars
@shapes
def test_scalar_ones_keep_the_polar_factor(normalisation, shape):
    M = gaussian(*shape)
    X = normalised(M, normalisation, 1.0, torch.float64)
    torch.testing.assert_close(ExactPolar()(X), ExactPolar()(M))
    assert normalisation(M, torch.float64).shape == (*M.shape[:-2], 1, 1)


def test_aol_scales_columns_by_the_row_sums_of_the_gram_matrix():
    M = gaussian(20, 4)
    D = (M.mT @ M).abs().sum(dim=0).sqrt()
    torch.testing.assert_close(normalised(M, AOL(), 1.0, torch.float64), M / D)


def test_turbo_muon_approximates_the_polar_factor_of_what_aol_leaves():
    M = gaussian(40, 12) * torch.logspace(0, 1.5, 12, dtype=torch.float64)
    D = (M.mT @ M).abs().sum(dim=0).sqrt()
    U = NewtonSchulz(TURBO_MUON, normalisation=AOL())(M)
    exact = ExactPolar()(M / D)
    # The schedule's band, [0.76, 1.09]; and not the polar factor of M.
    assert (U - exact).norm() / exact.norm() < 0.12
    assert (exact - ExactPolar()(M)).norm() / exact.norm() > 0.05


def test_one_turbo_muon_step_would_flip_orthogonal_matrices_without_its_safety():
    M = known("flat", 20, 8)
    U = NewtonSchulz(TURBO_MUON, normalisation=AOL())(M.M)
    assert (M.left.mT @ U @ M.right).diagonal().min() > 0.9


@pytest.mark.parametrize("engine", [NewtonSchulz, GramNewtonSchulz])
@scalars
def test_a_schedule_for_aol_refuses_other_normalisations(engine, normalisation):
    with pytest.raises(ValueError, match=f"'turbo-muon x4' needs .* AOL, got {normalisation}"):
        engine(TURBO_MUON, normalisation=normalisation)


@all_three
def test_schedules_for_the_frobenius_norm_take_any(normalisation):
    for schedule in (JORDAN, polar_express(5)):
        U = NewtonSchulz(schedule, normalisation=normalisation)(gaussian(20, 8))
        assert 0.5 < spectral_norm(U) < 1.3


def test_many_entries_overflow_no_half_precision_norm():
    row = torch.ones(1, 70_000)  # the sum of its squares is beyond float16's largest number
    norm = Schatten4()(row, torch.float16)
    torch.testing.assert_close(norm, torch.full((1, 1), 70_000.0**0.5), rtol=1e-2, atol=0)


@pytest.mark.parametrize("shape", [(300, 300), (2, 300, 300), (1, 2, 300, 300), (7, 7)])
def test_the_polynomial_by_rows_is_the_one_of_whole_matrices_bit_for_bit(shape):
    """A few rows at a time in float32, in place of float32 copies of everything."""
    R, square = (gaussian(*shape, seed=i).bfloat16() for i in range(2))
    R[..., 0, 0] = torch.nan
    factor = torch.full((*shape[:-2], 1, 1), 0.37)
    start = Start(R, R, square, factor)
    one, two = -3.1 * factor.square(), 1.7 * factor.square().square()
    whole = (R * one + square * two).to(torch.bfloat16)
    found = start.first_polynomial(R, -3.1, 1.7)
    torch.testing.assert_close(found, whole, rtol=0, atol=0, equal_nan=True)
    scaled = start.times_factor(R.clone(), 2)
    expected = R.clone().mul_(factor**2)
    torch.testing.assert_close(scaled, expected, rtol=0, atol=0, equal_nan=True)
