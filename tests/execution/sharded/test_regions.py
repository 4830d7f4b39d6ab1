"""Blocks and layouts, against the views themselves and against `torch.chunk`."""

import pytest
import torch

import polarlight as pl
from polarlight.execution.sharded.layouts import Layout, Split
from polarlight.execution.sharded.regions import overlap, segments, split_view

VIEWS = [
    (pl.view.Whole(), (5, 4)),
    (pl.view.Whole(), (3, 5, 4)),
    (pl.view.Whole(), (1, 4)),
    (pl.view.Whole(), (1, 1)),
    (pl.view.RowBlocks((12, 4, 2)), (18, 4)),
    (pl.view.RowBlocks((12, 6), (pl.view.Heads(3), pl.view.Heads(2))), (18, 4)),
    (pl.view.Heads(3), (18, 4)),
    (pl.view.Heads(4), (4, 1)),
    (pl.view.Heads(2, dim=-1), (18, 4)),
    (pl.view.Heads(2, -2, pl.view.Interleaved(3)), (18, 4)),
    (pl.view.Interleaved(2), (18, 4)),
    (pl.view.Transposed(), (18, 4)),
    (pl.view.Transposed(pl.view.Interleaved(2)), (3, 4, 18)),
    (pl.view.Transposed(pl.view.Heads(2)), (18, 4)),
    (pl.view.Flattened((2, 3)), (6, 4, 2, 3)),
    (pl.view.Flattened((3, 1)), (6, 1, 3, 1)),
    (pl.view.Flattened((2, 3), pl.view.Transposed()), (6, 4, 2, 3)),
    (pl.view.Taps(), (6, 4, 2, 3)),
    (pl.view.Slices(2), (6, 2, 4)),
    (pl.view.Slices(2), (3, 6, 2, 4)),
    (pl.view.Slices(2), (1, 2, 1)),
]
views = pytest.mark.parametrize(("view", "shape"), VIEWS, ids=str)


def cut(block):
    steps = zip(block.starts, block.steps, block.lengths, strict=True)
    return tuple(slice(a, a + step * (n - 1) + 1, step) for a, step, n in steps)


@views
def test_every_matrix_of_a_view_is_a_block(view, shape):
    x = torch.arange(torch.Size(shape).numel()).reshape(shape)
    parts = view.split(x)
    places = split_view(view, shape)
    for place in places:
        block = x[cut(place.block)].contiguous()
        assert block.shape == place.block.lengths
        matrix = block.as_strided(place.block.size, place.block.strides)
        assert torch.equal(matrix, parts[place.part][place.index])
    assert sum(place.block.numel for place in places) == x.numel()


def test_matrices_that_are_no_products_are_refused():
    view = pl.view.Flattened((2, 3), pl.view.Transposed(pl.view.Interleaved(2)))
    with pytest.raises(ValueError, match=r"Interleaved.*\(6, 4, 2, 3\) cannot be sharded"):
        split_view(view, (6, 4, 2, 3))


LAYOUTS = {
    "rows": ((4,), (Split(0),)),
    "columns": ((4,), (Split(1),)),
    "rows, twice": ((2, 2), (Split(0), Split(0))),
    "rows, strided": ((2, 3), (Split(0, 3), Split(0))),
    "rows and columns": ((2, 2), (Split(0), Split(1))),
    "copies of rows": ((2, 2), (None, Split(0))),
    "more places than rows": ((32,), (Split(0),)),
}
layouts = pytest.mark.parametrize(("mesh", "splits"), LAYOUTS.values(), ids=LAYOUTS)


def shard(x, layout, coordinate):
    """Return DTensor's shard at a coordinate, by its definition."""
    for place, count, split in zip(coordinate, layout.mesh, layout.splits, strict=True):
        if split is None:
            continue
        pieces = list(x.chunk(split.factor, split.dim))
        chosen = []
        for piece in pieces:
            chunks = list(piece.chunk(count, split.dim))
            empty = piece.narrow(split.dim, 0, 0)
            chosen.append(chunks[place] if place < len(chunks) else empty)
        x = torch.cat(chosen, split.dim)
    return x


def coordinates(mesh):
    return torch.cartesian_prod(*map(torch.arange, mesh)).reshape(-1, len(mesh)).tolist()


def covers(layout, block, coordinate, whole):
    return any(
        all(p is None or p == c for p, c in zip(places, coordinate, strict=True))
        for places in layout.coordinates_of(block.ranges, whole=whole)
    )


@views
@layouts
def test_segments_carry_a_block_from_the_shards(view, shape, mesh, splits):
    layout = Layout(shape, mesh, splits)
    x = torch.arange(1, torch.Size(shape).numel() + 1).reshape(shape)
    copies = 2 if None in splits else 1
    for place in split_view(view, shape):
        block, found = torch.zeros(place.block.lengths, dtype=x.dtype), 0
        for coordinate in coordinates(mesh):
            mine = shard(x, layout, coordinate)
            held = layout.held(tuple(coordinate))
            assert tuple(mine.shape) == layout.local_shape(tuple(coordinate))
            for piece in segments(place.block, held):
                block[piece.of_block] = mine[piece.of_shard].reshape(piece.shape)
            found += overlap(place.block, held)
            whole = overlap(place.block, held) == place.block.numel
            assert covers(layout, place.block, coordinate, whole=True) == whole
            if overlap(place.block, held):
                assert covers(layout, place.block, coordinate, whole=False)
        assert torch.equal(block, x[cut(place.block)])
        assert found == copies * place.block.numel


def test_buffers_are_cut_where_their_matrices_are():
    rows = Layout((8, 6), (4,), (Split(0),))
    assert rows.for_buffer((8, 1)).splits == (Split(0),)
    assert rows.for_buffer((1, 6)).splits == (Split(1),)
    assert rows.for_buffer((4, 2, 1)).splits == (Split(0),)  # four heads
    strided = Layout((8, 6), (2, 2), (Split(0, 2), Split(0)))
    assert strided.for_buffer((8, 1)) == Layout((8, 1), (2, 2), strided.splits)
    assert strided.for_buffer((1, 1)).splits == (Split(0), Split(0))
    copies = Layout((8, 6), (2, 2), (None, Split(0)))
    assert copies.for_buffer((48,)).splits == (None, Split(0))
