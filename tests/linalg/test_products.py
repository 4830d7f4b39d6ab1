"""Symmetric products: what is mirrored equals what is computed."""

import pytest
import torch

from polarlight.linalg import products
from polarlight.linalg.products import gram, gram_polynomial, symmetric_multiply_add
from tests.matrices import gaussian

DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 5e-2)]
"""Rounding of sums of a hundred products, relative to entries of about 1."""


@pytest.fixture(autouse=True)
def small_panels(monkeypatch):
    """Panels of 16 from 32 on, so that small matrices are cut, unevenly too."""
    monkeypatch.setattr(products, "PANEL", 16)
    monkeypatch.setattr(products, "PANELS_FROM", 32)
    monkeypatch.setattr(products, "PANELS_FROM_IN_HALF", 32)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(90, 40), (40, 90), (33, 33), (3, 50, 40), (2, 3, 32, 64)])
def test_gram_matrices_are_the_plain_product(shape, dtype, tolerance):
    X = gaussian(*shape).to(dtype)
    plain = X.mT @ X if shape[-2] > shape[-1] else X @ X.mT
    R = gram(X)
    torch.testing.assert_close(R, R.mT, rtol=tolerance, atol=tolerance)  # blocks on the diagonal
    torch.testing.assert_close(R, plain, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
@pytest.mark.parametrize("batch", [(), (3,)])
def test_products_of_what_commutes_are_the_plain_product(batch, dtype, tolerance):
    A = gaussian(*batch, 50, 50)
    A = ((A + A.mT) / 50).to(dtype)
    B = (A.double() @ A.double()).to(dtype)
    found = symmetric_multiply_add(A, A, B, 0.5, -2.0)
    expected = 0.5 * A.double() - 2 * A.double() @ B.double()
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found, found.mT, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("length", "cut"), [(63, False), (64, True)])
def test_half_precision_is_cut_where_rows_are_long(length, cut):
    assert products._in_panels(torch.zeros(32, length, dtype=torch.bfloat16)) == cut
    assert products._in_panels(torch.zeros(32, length))


def test_nothing_is_written():
    A = gram(gaussian(60, 40))
    before = A.clone()
    symmetric_multiply_add(A, A, A, 1.0)
    gram_polynomial(A, 1.0, 2.0)
    assert torch.equal(A, before)


def test_a_nan_stays_in_its_matrix():
    X = gaussian(2, 60, 40)
    X[0, 0, 0] = torch.nan
    R = gram(X)
    assert R[0].isnan().any()
    assert R[1].isfinite().all()
