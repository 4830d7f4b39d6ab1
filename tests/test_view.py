"""Views: split and join are inverse, parts are views, and misfits are named."""

import pytest
import torch

from polarlight.view import Heads, RowBlocks, Transposed, Whole

CASES = [
    (Whole(), (6, 4), [(6, 4)]),
    (Whole(), (3, 6, 4), [(3, 6, 4)]),
    (RowBlocks((4, 1, 1)), (6, 4), [(4, 4), (1, 4), (1, 4)]),
    (RowBlocks((4, 2)), (3, 6, 4), [(3, 4, 4), (3, 2, 4)]),
    (Heads(3), (6, 4), [(3, 2, 4)]),
    (Heads(2, dim=-1), (6, 4), [(2, 6, 2)]),
    (Heads(2, dim=-1), (3, 6, 4), [(3, 2, 6, 2)]),
    (Transposed(), (6, 4), [(4, 6)]),
    (Transposed(RowBlocks((1, 3))), (6, 4), [(1, 6), (3, 6)]),
    (Transposed(Heads(2)), (5, 6, 4), [(5, 2, 2, 6)]),
]
cases = pytest.mark.parametrize(("view", "shape", "parts"), CASES, ids=str)


@cases
def test_parts_have_the_shapes_that_were_announced(view, shape, parts):
    x = torch.randn(shape)
    assert [tuple(part.shape) for part in view.split(x)] == parts
    assert [tuple(part) for part in view.shapes(x.shape)] == parts


@cases
def test_join_is_the_inverse_of_split(view, shape, parts):
    x = torch.randn(shape)
    assert torch.equal(view.join(view.split(x)), x)


@cases
def test_parts_are_views(view, shape, parts):
    x = torch.zeros(shape)
    for part in view.split(x):
        part.fill_(1)
    assert torch.equal(x, torch.ones(shape))


def test_heads_are_the_rows_or_columns_of_each_head():
    x = torch.arange(24.0).reshape(6, 4)
    assert torch.equal(Heads(3).split(x)[0][1], x[2:4])
    assert torch.equal(Heads(2, dim=-1).split(x)[0][1], x[:, 2:])


@pytest.mark.parametrize(
    ("view", "shape", "said"),
    [
        (RowBlocks((4, 1)), (6, 4), "covers 5 rows, the parameter has 6"),
        (Heads(4), (6, 4), r"cannot split 6 of shape \(6, 4\) evenly"),
        (Whole(), (6,), r"needs at least 2 dimensions, got shape \(6,\)"),
        (Transposed(), (6,), "needs at least 2 dimensions"),
    ],
    ids=str,
)
def test_a_parameter_that_does_not_fit_is_named(view, shape, said):
    with pytest.raises(ValueError, match=said):
        view.shapes(torch.Size(shape))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RowBlocks(()), "positive row counts"),
        (lambda: RowBlocks((3, 0)), "positive row counts"),
        (lambda: Heads(0), "count must be >= 1, got 0"),
        (lambda: Heads(2, dim=0), "dim must be -2"),
    ],
)
def test_impossible_views_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_views_are_values():
    assert RowBlocks((1, 2)) == RowBlocks((1, 2))
    assert len({Heads(2), Heads(2), Heads(2, dim=-1)}) == 2
    assert repr(Transposed(Heads(2))) == "Transposed(inner=Heads(count=2, dim=-2))"
