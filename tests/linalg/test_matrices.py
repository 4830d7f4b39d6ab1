"""What every map asks of its input, and the scale that it works at."""

import pytest
import torch

from polarlight.linalg.matrices import frobenius_norm, nonzero, unit_scale, unit_scale_in, wide
from polarlight.linalg.row_sums import (
    HERE,
    NeedsAllRowsError,
    Rows,
    check_tall,
    on_rows,
    over_rows,
)
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
    assert torch.equal(on_rows(torch.neg, X, HERE), -X)
    with pytest.raises(NeedsAllRowsError, match="cannot be computed on a part of the rows"):
        on_rows(torch.neg, X, Others())
