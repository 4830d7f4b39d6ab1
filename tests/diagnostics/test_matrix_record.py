"""Records of matrices with known statistics."""

import pytest
import torch

from polarlight.diagnostics.matrix_record import MatrixSample, measure_matrix
from polarlight.diagnostics.spectra import leverages


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def polar(M):
    U, _, Vh = torch.linalg.svd(M, full_matrices=False)
    return U @ Vh


@pytest.fixture
def exact():
    """An exact polar factor, four times as large, of a momentum with uneven rows."""
    M = normal(24, 6) * torch.logspace(0, -2, 24)[:, None]
    return MatrixSample(
        weight=normal(24, 6, seed=1), direction=4 * polar(M), momentum=1e-20 * M, lr=0.5
    )


def test_an_exact_polar_factor_has_no_orthogonality_error(exact):
    record = measure_matrix(exact, spectra=True).record
    # float32: singular values from Gram matrices are good to about its root, 3e-4.
    assert record["orthogonality"] < 1e-5
    assert record["alignment"] == pytest.approx(1, abs=1e-3)
    assert record["stable_rank"] == pytest.approx(6, abs=1e-3)
    assert record["quantiles"]["0.5"] == pytest.approx(1, abs=1e-3)
    # |4 U|_F = 4 sqrt(6)
    assert record["rms"] == pytest.approx(4 * 6**0.5 / 144**0.5, rel=1e-5)
    expected = 0.5 * 4 * 6**0.5 / exact.weight.norm()
    assert record["ratio"] == pytest.approx(float(expected), rel=1e-5)


def test_both_readings_agree_where_the_update_is_the_polar_factor(exact):
    readings = measure_matrix(exact, spectra=False)
    shares = leverages(exact.momentum.double()) * 4
    for found in (readings.update, readings.momentum):
        torch.testing.assert_close(found.double(), shares, rtol=1e-4, atol=1e-5)
    assert "alignment" not in readings.record


def test_effective_neurons_of_a_quarter_that_moves_alone():
    D = torch.zeros(8, 2)
    D[:2] = torch.eye(2)
    record = measure_matrix(MatrixSample(D, D, D, 1.0), spectra=False).record["update"]
    assert record["effective"] == pytest.approx(0.25)
    assert record["min"] == 0
    assert record["starved"]["0.01"] == pytest.approx(0.75)


def test_an_even_spectrum_is_not_aligned_with_a_steep_momentum():
    M = torch.linalg.qr(normal(12, 4))[0] @ torch.diag(torch.tensor([1.0, 0.1, 0.1, 0.1]))
    follow = measure_matrix(MatrixSample(M, M, M, 1.0), spectra=True).record  # a gradient step
    # <M, M> / (rms(sigma) |M|_*) = 1.03 / (sqrt(1.03 / 4) 1.3)
    assert follow["alignment"] == pytest.approx(1.03 / ((1.03 / 4) ** 0.5 * 1.3), rel=1e-3)
    assert follow["cosine"] == pytest.approx(1)


@pytest.mark.parametrize("spectra", [False, True])
def test_zero_and_non_finite_matrices_give_numbers(spectra):
    zero = torch.zeros(6, 2)
    record = measure_matrix(MatrixSample(zero, zero, zero, 1.0), spectra=spectra).record
    assert record["ratio"] == 0
    assert record["update"]["spread"] == 0
    broken = zero.clone()
    broken[0, 0] = torch.nan
    measure_matrix(MatrixSample(zero, broken, broken, 1.0), spectra=spectra)


def test_a_batch_is_read_as_the_mean_of_its_matrices():
    samples = [
        MatrixSample(normal(12, 3), normal(12, 3, seed=i), normal(12, 3, seed=i), 1.0)
        for i in (1, 2)
    ]
    both = MatrixSample(
        *(
            torch.stack([getattr(x, n) for x in samples])
            for n in ("weight", "direction", "momentum")
        ),
        1.0,
    )
    single = [measure_matrix(sample, spectra=True).record for sample in samples]
    record = measure_matrix(both, spectra=True).record
    for key in ("alignment", "orthogonality", "stable_rank", "row_norm_spread"):
        mean = sum(float(r[key]) for r in single) / 2
        assert record[key] == pytest.approx(mean, rel=1e-4)


def test_columns_of_the_transpose_are_rows(exact):
    again = measure_matrix(exact.transposed().transposed(), spectra=False).record
    assert again["rms"] == measure_matrix(exact, spectra=False).record["rms"]
