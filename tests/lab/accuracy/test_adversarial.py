"""The search for the worst: its scores, and that it finds faults which random matrices hide."""

import pytest
import torch

from polarlight.lab.accuracy.adversarial import (
    FAMILIES,
    largest,
    least_promised,
    lifted,
    search,
)
from polarlight.linalg import ExactPolar
from polarlight.linalg.band import Band
from tests.matrices import gaussian

FULL = Band(0.9, 1.1, 1e-2, 2.0)


def with_spectrum(*sigma):
    U, _, Vh = torch.linalg.svd(gaussian(6, len(sigma)), full_matrices=False)
    return (U * torch.tensor(sigma, dtype=torch.float64) @ Vh).unsqueeze(0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4)], ids=str)
def test_largest_is_the_spectral_norm(shape, dtype):
    M = torch.stack([gaussian(*shape, seed=seed) for seed in range(3)]).to(dtype)
    found = largest(M)
    torch.testing.assert_close(found, torch.linalg.matrix_norm(M.double(), 2), rtol=1e-14, atol=0)


def test_largest_is_right_to_a_few_epsilons_near_an_isometry():
    """Singular values by LAPACK are off by 23 epsilons for one of these."""
    left, right = torch.linalg.qr(gaussian(2, 40, 4, 4)).Q
    sigma = 1 - torch.logspace(-16, -10, 4, dtype=torch.float64)
    error = (largest((left * sigma) @ right.mT) - 1).abs()
    assert error.max() < 16 * torch.finfo(torch.float64).eps


def test_nan_is_the_worst_of_all():
    M = gaussian(3, 3).unsqueeze(0).repeat(2, 1, 1)
    M[1, 0, 0] = torch.nan
    assert largest(M).tolist()[1] == float("inf")
    assert least_promised(lambda M: M * torch.nan, M[:1], FULL).item() == -float("inf")


def test_singular_values_just_below_the_promise_are_raised_to_it():
    M, promised = lifted(with_spectrum(1.0, 0.5, 2e-3, 2e-5, 1e-9), FULL)
    sigma = torch.linalg.svdvals(M[0])
    assert promised.tolist() == [4]
    assert 1e-2 < sigma[3] / sigma.norm() < 1.06e-2  # LIFT, and the norm that it adds to
    assert sigma[4] < 1e-8


@pytest.mark.parametrize("order", [2.0, 8.0, float("inf")])
def test_the_promise_is_relative_to_the_norm_of_its_order(order):
    band = Band(0.9, 1.1, 0.3, order)
    _, promised = lifted(with_spectrum(1.0, 1.0, 1.0, 1.0), band)
    assert promised.tolist() == [4]  # each is half of the Frobenius norm
    assert lifted(torch.zeros(1, 3, 2), band)[1].tolist() == [0]


def test_directions_outside_the_promise_are_not_asked_for():
    M = with_spectrum(1.0, 0.5, 1e-9)
    assert least_promised(ExactPolar(cutoff=1e-3), M, FULL).item() == pytest.approx(1.0)
    assert least_promised(lambda M: M, torch.zeros(1, 3, 2), FULL).item() == float("inf")


def test_a_fault_on_uneven_rows_is_found_and_climbed():
    """A map that shortens what has one row far above the others, by at most a half."""

    def engine(M):
        norms = M.norm(dim=-1)
        share = norms.amax(dim=-1) / norms.sum(dim=-1).clamp_min(1e-30)
        return ExactPolar()(M) * (1 - 0.5 * share.clamp(0.9, 1.0).sub(0.9).mul(10))[:, None, None]

    def score(M):
        return -least_promised(engine, M, FULL)

    M = torch.stack([gaussian(6, 4, seed=seed) for seed in range(500)])
    assert least_promised(engine, M, FULL).min() > 0.999
    found = search(score, (6, 4), count=32, rounds=0)
    assert -found.score < 0.8
    assert search(score, (6, 4), count=32, rounds=10).score > found.score
    assert score(found.matrix.unsqueeze(0)).item() == pytest.approx(found.score)


def test_a_search_is_repeatable_and_follows_its_seed():
    def score(M):
        return largest(M)

    one, same, other = (search(score, (3, 5), count=8, rounds=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.matrix, same.matrix)
    assert one.score != other.score


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
@pytest.mark.parametrize("shape", [(1, 7), (2, 2), (9, 4)], ids=str)
def test_every_family_draws_finite_matrices_of_the_shape(family, shape):
    M = family(shape, 5, torch.Generator().manual_seed(0))
    assert M.shape == (5, *shape)
    assert M.dtype == torch.float64
    assert M.isfinite().all()
