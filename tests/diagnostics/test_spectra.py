"""Numbers about a matrix, on matrices whose numbers are known."""

import pytest
import torch

from polarlight.diagnostics.spectra import (
    gram_leverages,
    leverages,
    orthogonality_error,
    precise_gram,
    row_shares,
    singular_values,
    spectrum,
    spread,
    starved,
)


def orthonormal(m, n, seed=0):
    x = torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(x)[0]


def test_leverages_are_squared_row_norms_of_the_polar_factor():
    M = torch.randn(2, 20, 5, dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(M, full_matrices=False)
    torch.testing.assert_close(leverages(M), (U @ Vh).square().sum(-1))


def test_leverages_depend_on_the_column_space_alone():
    M = orthonormal(20, 5) @ torch.diag(torch.logspace(0, -4, 5, dtype=torch.float64))
    # condition 1e4 in float64
    torch.testing.assert_close(leverages(M), leverages(orthonormal(20, 5)), rtol=0, atol=1e-10)


def test_null_directions_do_not_count():
    M = torch.zeros(6, 3)
    M[0, 0], M[1, 1] = 1, 5
    assert leverages(M).tolist() == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_row_shares_average_to_one_at_any_scale(factor):
    D = torch.tensor([[3.0, 4.0], [0, 0], [5, 0], [0, 0]]) * factor
    torch.testing.assert_close(row_shares(D), torch.tensor([2.0, 0, 2, 0]))


def test_the_share_of_an_orthonormal_factor_is_its_leverage_over_an_equal_share():
    U = orthonormal(20, 5)
    torch.testing.assert_close(row_shares(U), leverages(U) * 20 / 5)


def test_zero_matrices_have_zero_numbers():
    zero = torch.zeros(4, 2)
    for number in (leverages(zero), row_shares(zero), singular_values(zero)):
        assert number.abs().max() == 0
    assert spread(zero[:, 0]) == 0


def test_starved_counts_rows_below_the_threshold():
    shares = torch.tensor([[0.0, 0.05, 0.2, 3.75], [1.0, 1.0, 1.0, 1.0]])
    assert starved(shares, 0.1).tolist() == [0.5, 0]
    assert starved(shares, 0.25).tolist() == [0.75, 0]


def test_singular_values_are_relative_to_their_rms():
    D = torch.diag(torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(singular_values(D), torch.tensor([4.0, 3]) / 12.5**0.5)


@pytest.mark.parametrize("condition", [0, -1, -2, -3])
def test_leverages_from_the_gram_matrix_are_those_of_the_decomposition(condition):
    sigma = torch.logspace(0, condition, 8, dtype=torch.float64)
    M = (orthonormal(40, 8) @ torch.diag(sigma) @ orthonormal(8, 8, seed=1)).float()
    # The weakest direction is a thousandth of the strongest: it keeps 0.99 of its leverage.
    torch.testing.assert_close(
        gram_leverages(M, precise_gram(M)), leverages(M), rtol=0.02, atol=1e-4
    )


def test_leverages_from_the_gram_matrix_leave_null_directions_out():
    M = torch.zeros(6, 3)
    M[0, 0], M[1, 1] = 1, 5
    expected = torch.tensor([1.0, 1, 0, 0, 0, 0])
    torch.testing.assert_close(gram_leverages(M, precise_gram(M)), expected, rtol=0, atol=1e-5)
    zero = torch.zeros(2, 6, 3)
    assert gram_leverages(zero, precise_gram(zero)).abs().max() == 0


def test_the_spectrum_of_a_gram_matrix():
    M = orthonormal(10, 3) @ torch.diag(torch.tensor([3.0, 2, 1]).double())
    torch.testing.assert_close(spectrum(M.mT @ M), torch.tensor([3.0, 2, 1]).double())


def test_orthogonality_error_is_free_of_scale_and_zero_for_orthonormal_columns():
    U = orthonormal(10, 3)
    assert orthogonality_error(9 * U.mT @ U) < 1e-12
    # D'D = diag(2, 0), over its mean: |diag(2, 0) - I|_F / sqrt(2) = 1
    assert orthogonality_error(torch.diag(torch.tensor([5.0, 0]))) == pytest.approx(1)
    assert orthogonality_error(torch.zeros(2, 2)) == pytest.approx(1)
