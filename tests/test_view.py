"""Views: split and join are inverse, parts are views, and misfits are named."""

import copy
import json
import pickle

import pytest
import torch

from polarlight.routing.view_text import view_call, view_from_json, view_to_json
from polarlight.view import (
    Flattened,
    Heads,
    Interleaved,
    MatrixView,
    RowBlocks,
    Slices,
    Taps,
    Transposed,
    Whole,
)

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
    (Interleaved(2), (6, 4), [(3, 4), (3, 4)]),
    (Interleaved(3), (5, 6, 4), [(5, 2, 4)] * 3),
    # torchtitan: gate and up of an MLP, and of stacked experts.
    (Slices(2), (6, 2, 4), [(6, 4), (6, 4)]),
    (Slices(2), (3, 6, 2, 4), [(3, 6, 4), (3, 6, 4)]),
    (Heads(2, inner=RowBlocks((1, 2))), (6, 4), [(2, 1, 4), (2, 2, 4)]),
    (Heads(2, dim=-1, inner=Transposed()), (6, 4), [(2, 2, 6)]),
    (RowBlocks((4, 2, 2), (Heads(2), Whole(), Heads(2))), (8, 4), [(2, 2, 4), (2, 4), (2, 1, 4)]),
    # Column blocks of unequal width, one of which is heads.
    (Transposed(RowBlocks((3, 2), (Heads(3), Transposed()))), (6, 5), [(3, 1, 6), (6, 2)]),
    # gpt-oss: experts stored (E, in, 2 out), gate and up taking turns.
    (Transposed(Interleaved(2)), (5, 6, 4), [(5, 2, 6), (5, 2, 6)]),
    # Qwen3-Next: per key head a block of q, k, two heads of v and two of z.
    (
        Heads(2, inner=RowBlocks((3, 3, 4, 4), (Whole(), Whole(), Heads(2), Heads(2)))),
        (28, 5),
        [(2, 3, 5), (2, 3, 5), (2, 2, 2, 5), (2, 2, 2, 5)],
    ),
    (Flattened((3, 2)), (6, 4, 3, 2), [(6, 24)]),
    (Flattened((3,)), (6, 4, 3), [(6, 12)]),
    (Flattened((3,), Transposed()), (6, 4, 3), [(12, 6)]),
    (Flattened((3,), Heads(2)), (6, 4, 3), [(2, 3, 12)]),
    (Taps(Transposed()), (6, 4, 3), [(3, 4, 6)]),
    (Taps(), (6, 4, 3, 2), [(3, 2, 6, 4)]),
    (Taps(), (6, 4, 3), [(3, 6, 4)]),
    (Taps(), (6, 4, 3, 2, 5), [(3, 2, 5, 6, 4)]),
]
cases = pytest.mark.parametrize(("view", "shape", "parts"), CASES, ids=str)


@cases
def test_parts_have_the_shapes_that_were_announced(view, shape, parts):
    x = torch.randn(shape)
    assert [tuple(part.shape) for part in view.split(x)] == parts
    assert [tuple(part) for part in view.shapes(x.shape)] == parts
    assert len(view) == len(parts)


@cases
def test_join_is_the_inverse_of_split(view, shape, parts):
    x = torch.randn(shape)
    assert torch.equal(view.join(view.split(x)), x)


@cases
def test_parts_are_views(view, shape, parts):
    x = torch.zeros(shape)
    for part in view.split(x):
        assert part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        part += 1
    assert torch.equal(x, torch.ones(shape))


def test_heads_are_the_rows_or_columns_of_each_head():
    x = torch.arange(24.0).reshape(6, 4)
    assert torch.equal(Heads(3).split(x)[0][1], x[2:4])
    assert torch.equal(Heads(2, dim=-1).split(x)[0][1], x[:, 2:])


def test_interleaved_rows_are_separated():
    x = torch.arange(24.0).reshape(6, 4)
    even, odd = Interleaved(2).split(x)
    assert torch.equal(even, x[::2])
    assert torch.equal(odd, x[1::2])


def test_one_matrix_has_the_same_parts_in_every_layout():
    """Experts stored (E, out, in), (E, in, out), concatenated or taking turns: the meaning wins."""
    gate, up = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    concatenated = torch.cat((gate, up), dim=-2)
    turns = torch.stack((gate, up), dim=-2).flatten(-3, -2)
    layouts = [
        (RowBlocks((3, 3)), concatenated),
        (Transposed(RowBlocks((3, 3))), concatenated.mT.contiguous()),
        (Interleaved(2), turns),
        (Transposed(Interleaved(2)), turns.mT.contiguous()),
        (Slices(2), torch.stack((gate, up), dim=-2)),
    ]
    for view, stored in layouts:
        assert all(map(torch.equal, view.split(stored), (gate, up)))


def test_a_flattened_kernel_multiplies_unfolded_patches():
    kernel, image = torch.randn(6, 4, 3, 2), torch.randn(1, 4, 5, 5)
    patches = torch.nn.functional.unfold(image, (3, 2))
    expected = torch.nn.functional.conv2d(image, kernel).flatten(2)
    torch.testing.assert_close(Flattened((3, 2)).split(kernel)[0] @ patches, expected)


def test_taps_are_the_matrices_of_the_window():
    kernel = torch.randn(6, 4, 3, 2)
    (taps,) = Taps().split(kernel)
    for row in range(3):
        for column in range(2):
            assert torch.equal(taps[row, column], kernel[:, :, row, column])


@pytest.mark.parametrize("view", [Flattened((3, 2)), Taps()], ids=str)
def test_kernels_in_channels_last_memory_have_the_same_parts(view):
    kernel = torch.randn(6, 4, 3, 2)
    moved = kernel.contiguous(memory_format=torch.channels_last)
    assert torch.equal(view.split(moved)[0], view.split(kernel)[0])
    assert torch.equal(view.join(view.split(moved)), kernel)


@pytest.mark.parametrize(
    ("view", "shape", "said"),
    [
        (RowBlocks((4, 1)), (6, 4), "covers 5 rows, the parameter has 6"),
        (Heads(4), (6, 4), r"cannot split 6 of shape \(6, 4\) evenly"),
        (Interleaved(4), (6, 4), r"cannot split 6 rows of shape \(6, 4\) evenly"),
        (Slices(2), (6, 4), r"needs a parameter \[..., m, 2, n\], got shape \(6, 4\)"),
        (Slices(2), (6, 3, 4), r"got shape \(6, 3, 4\)"),
        (Heads(2, inner=RowBlocks((2, 2))), (6, 4), "covers 4 rows, the parameter has 3"),
        (Whole(), (6,), r"needs at least 2 dimensions, got shape \(6,\)"),
        (Transposed(), (6,), "needs at least 2 dimensions"),
        (Taps(), (6, 4), r"needs a kernel \[out, in, ...\], got shape \(6, 4\)"),
        (Flattened((3,)), (6, 4), "needs a kernel"),
        (Flattened((3, 3)), (6, 4, 3, 2), r"does not fit a kernel of shape \(6, 4, 3, 2\)"),
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
        (lambda: RowBlocks((3, 1), (Whole(),)), "2 blocks need as many views"),
        (lambda: Interleaved(0), "count must be >= 1, got 0"),
        (lambda: Slices(0), "count must be >= 1, got 0"),
        (lambda: Heads(0), "count must be >= 1, got 0"),
        (lambda: Heads(2, dim=0), "dim must be -2"),
        (lambda: Flattened(()), "window must be one or more positive sizes"),
        (lambda: Flattened((3, 0)), "window must be one or more positive sizes"),
    ],
)
def test_impossible_views_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@cases
def test_views_are_values(view, shape, parts):
    assert isinstance(view, MatrixView)
    for twin in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        assert twin == view
        assert hash(twin) == hash(view)
        assert repr(twin) == repr(view)


def test_different_views_differ():
    assert len({view for view, _, _ in CASES}) == len({repr(view) for view, _, _ in CASES})


@cases
def test_views_pass_through_json(view, shape, parts):
    assert view_from_json(json.loads(json.dumps(view_to_json(view)))) == view


@cases
def test_the_call_that_makes_a_view_makes_it(view, shape, parts):
    assert eval(view_call(view)) == view


def test_the_call_leaves_out_what_is_default():
    view = Transposed(RowBlocks((4, 2), (Heads(2), Heads(1, dim=-1))))
    assert view_call(view) == "Transposed(RowBlocks((4, 2), inner=(Heads(2), Heads(1, dim=-1))))"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"view": "Rows"},
            r"unknown view 'Rows'\..* Known: Whole, RowBlocks",
        ),
        ({}, "unknown view 'None'"),
        ({"view": "Heads", "number": 3}, r"Heads has entries \['count', 'dim', 'inner'\]"),
        ({"view": "Heads", "dim": -1}, r"Heads needs \['count'\]"),
        ({"view": "Heads", "count": 0}, "count must be >= 1, got 0"),
    ],
)
def test_data_that_is_no_view_is_refused(data, said):
    with pytest.raises(ValueError, match=said):
        view_from_json(data)


def test_only_own_views_become_json():
    class Diagonal:
        pass

    with pytest.raises(ValueError, match="none of the views"):
        view_to_json(Diagonal())
