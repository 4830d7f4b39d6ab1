"""Checks and scaling of every map's input."""

import pytest
import torch

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.eigen import EigenPolar
from polarlight.linalg.matrices import frobenius_norm, nonzero, unit_scale, unit_scale_in, wide
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import AOL, Frobenius, Schatten4, Schatten8, started
from polarlight.linalg.products import gram, times_short
from polarlight.linalg.regularised import RegularisedPolar
from polarlight.linalg.row_sums import ALL_ROWS, NeedsAllRowsError, Rows, check_tall, over_rows
from polarlight.linalg.rows import (
    inverse,
    leverage_correction,
    rms_row_norm,
    row_norms,
    significance,
)
from polarlight.linalg.slot import Function
from tests.matrices import gaussian

WIDE_OF = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


class Others(Rows):
    """Rows elsewhere whose largest entry is 4 and whose sums are 16, of 9 rows in all."""

    def count(self, X):
        return 9

    def sum(self, x):
        return x + 16

    def max(self, x):
        return x.clamp(min=4)


@pytest.mark.parametrize("dtype", WIDE_OF, ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (2, 2, 3, 5)])
def test_the_largest_entry_becomes_one_in_a_wide_dtype(dtype, shape):
    M = gaussian(*shape).to(dtype)
    before = M.clone()
    X = unit_scale(M)
    assert X.dtype == wide(dtype) == WIDE_OF[dtype]
    assert torch.equal(M, before)
    assert torch.equal(X.abs().amax(dim=(-2, -1)), torch.ones(shape[:-2], dtype=X.dtype))
    largest = M.to(X.dtype).abs().amax(dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(X * largest, M.to(X.dtype), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5)])
@pytest.mark.parametrize("power", [-100, 0, 1, 100])
def test_in_bfloat16_it_lies_between_one_and_two_and_nothing_is_rounded(shape, power):
    M = (gaussian(*shape) * 2.0**power).bfloat16()
    X = unit_scale_in(M, torch.bfloat16)
    assert X.dtype == torch.bfloat16
    largest = X.float().abs().amax(dim=(-2, -1))
    assert ((largest >= 1) & (largest < 2)).all()
    ratio = X.double() / M.double()
    assert (ratio == ratio.amax(dim=(-2, -1), keepdim=True)).all()
    assert (torch.frexp(ratio).mantissa == 0.5).all()


def test_a_new_tensor_comes_back_even_where_nothing_is_to_be_done():
    M = torch.ones(2, 2)
    assert unit_scale(M).data_ptr() != M.data_ptr()
    narrow = torch.ones(2, 2, dtype=torch.bfloat16)
    assert unit_scale_in(narrow, torch.bfloat16).data_ptr() != narrow.data_ptr()
    assert unit_scale(torch.ones(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_elsewhere_are_asked_for_their_largest_entry(dtype):
    X = unit_scale_in(torch.full((2, 3), 2.0), dtype, Others())
    assert torch.equal(X, torch.full((2, 3), 0.5, dtype=dtype))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)])
def test_a_part_without_rows_keeps_its_shape(shape):
    """Everybody takes part in the exchange, whether they have rows or not."""
    asked = []

    class Noting(Others):
        def max(self, x):
            asked.append(x.shape)
            return super().max(x)

    assert unit_scale(torch.ones(shape), Noting()).shape == shape
    assert asked == [(*shape[:-2], 1, 1)]


def test_norms_and_sums_take_in_what_lies_elsewhere():
    M = torch.tensor([[1.0, 2.0], [0.0, 2.0]])
    torch.testing.assert_close(frobenius_norm(M), torch.tensor([[3.0]]))
    torch.testing.assert_close(frobenius_norm(M, Others()), torch.tensor([[5.0]]))
    assert over_rows(M).tolist() == [[1.0, 4.0]]
    assert over_rows(M, Others()).tolist() == [[17.0, 20.0]]


def test_divisors_have_no_zeros():
    x = torch.tensor([0.0, -0.0, 2.0, -1e-45])
    assert nonzero(x).tolist() == [1.0, 1.0, 2.0, x[3].item()]


@pytest.mark.parametrize(("columns", "tall"), [(8, True), (9, False), (10, False)])
def test_only_the_whole_matrix_decides_whether_it_is_tall(columns, tall):
    X = torch.ones(1, columns)
    if tall:
        assert check_tall(X, Others()) is None
        return
    with pytest.raises(NeedsAllRowsError, match=f"rows of a 9 x {columns} matrix are no tall one"):
        check_tall(X, Others())


def test_a_map_that_knows_nothing_of_rows_is_for_all_of_them():
    X = torch.ones(2, 2)
    assert torch.equal(Function(torch.neg).on_rows(X, ALL_ROWS), -X)
    with pytest.raises(NeedsAllRowsError, match="cannot be computed on a part of the rows"):
        Function(torch.neg).on_rows(X, Others())


class Stacked(Rows):
    """Every holder has the same rows as this one; there are `copies` of them."""

    def __init__(self, copies):
        self.copies = copies

    def count(self, X):
        return self.copies * X.shape[-2]

    def sum(self, x):
        return self.copies * x


@pytest.mark.parametrize("batch", [(), (2,)])
def test_parts_that_are_wide_themselves_are_treated_as_rows_of_a_tall_matrix(batch):
    X, rows = gaussian(*batch, 2, 3), Stacked(4)
    whole = torch.cat([X] * 4, dim=-2)
    torch.testing.assert_close(gram(X, rows), whole.mT @ whole)
    A = gaussian(*batch, 3, 3, seed=1)
    for beta in (0.0, 0.5):
        torch.testing.assert_close(times_short(X, A, beta, rows), beta * X + X @ A)
    for normalisation in (Frobenius(), Schatten4(), Schatten8(), AOL()):
        found = normalisation(X, X.dtype, rows)
        torch.testing.assert_close(found, normalisation(whole, X.dtype))
    start, complete = (
        started(M, Schatten8(), 1.01, X.dtype, r) for M, r in ((X, rows), (whole, ALL_ROWS))
    )
    for ours, theirs in zip(start, (complete.X[..., :2, :], *complete[1:]), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("engine", [EigenPolar(), RegularisedPolar(), NewtonSchulz(), AutoPolar()])
def test_engines_on_parts_are_those_rows_of_the_whole_result(engine):
    X = gaussian(2, 2, 3)
    whole = torch.cat([X] * 4, dim=-2)
    torch.testing.assert_close(engine.on_rows(X, Stacked(4)), engine(whole)[..., :2, :])
    with pytest.raises(NeedsAllRowsError, match="rows of a 2 x 3 matrix"):
        engine.on_rows(X, Stacked(1))


@pytest.mark.parametrize("engine", [EigenPolar(), RegularisedPolar()], ids=str)
def test_zeros_and_bad_entries_of_parts_are_those_of_the_whole(engine):
    X = gaussian(3, 2, 3)
    X[0, 1], X[0, :, 2] = 0, 0
    X[1, 0, 0] = torch.nan
    U = engine.on_rows(X, Stacked(4))
    assert not U[0, 1].any()
    assert not U[0, :, 2].any()
    assert U[0, 0, 0] != 0
    assert U[1].isnan().all()
    assert U[2].isfinite().all()


def test_rms_and_corrections_count_the_rows_of_the_whole():
    X, rows = gaussian(2, 3), Stacked(4)
    norms, whole = row_norms(X), row_norms(torch.cat([X] * 4))
    torch.testing.assert_close(rms_row_norm(norms, rows), rms_row_norm(whole))
    torch.testing.assert_close(inverse(norms, 0.5, rows), inverse(whole, 0.5)[:2])
    torch.testing.assert_close(significance(norms, 0.5, rows), significance(whole, 0.5)[:2])
    for exponent in (None, 0.25):
        ours = leverage_correction(X, norms, exponent, rows)
        theirs = leverage_correction(torch.cat([X] * 4), whole, exponent)
        torch.testing.assert_close(ours, theirs[:2])
